"""Second moments of what a layer is given and should give, collected in pieces and merged.

Kept are counts, means and centred sums of products. Every piece is centred on its own mean before
products are formed, so that a large mean does not eat the digits of a small variance; pieces are
put together by the formula of Chan, Golub and LeVeque (1979), "Updating Formulae and a Pairwise
Algorithm for Computing Sample Variances", equation 2.1, in float64. Memory does not depend on the
number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.errors import ShapeMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# an input that varies by less, as a share of its mean, is constant but for float32's rounding
_CONSTANT = 2.0**-20
# samples whose products are formed at once; sums of so many float32 products are good to 1e-6
_PIECE = 4096
# columns whose products with those behind them are formed at once
_BLOCK = 192


class FittedWeight:
    """What moments of any kind say of a layer's weight."""

    def second(self, *, centred: bool) -> Tensor:
        """Second moments of the inputs, about their means or about zero: `[G, D, D]`."""
        raise NotImplementedError

    def cross(self, *, centred: bool) -> Tensor:
        """Second moments of wanted outputs and inputs: `[G, O, D]`."""
        raise NotImplementedError

    def target(
        self, weight: Tensor, inverse: Tensor, *, centred: bool, second: Tensor | None = None
    ) -> Tensor:
        """The weight that makes the wanted outputs of these inputs best, before any rounding.

        The least-squares solution `E[y x^T] E[x x^T]^-1`, drawn towards the given weight where the
        data say little: `W + (E[y x^T] - W H) (H + a I)^-1`.

        Args:
            weight: the layer's weight, `[G, O, D]`.
            inverse: inverse of the damped second moments, `(H + a I)^-1`, `[G, D, D]`.
            centred: whether the layer has a bias, which takes the means in.
            second: what `second` returned, if it is known.

        Source: the normal equations behind Frantar and Alistarh 2022, "Optimal Brain Compression",
        arXiv:2208.11580, section 4, with the outputs of the float model as what is wanted.
        """
        second = self.second(centred=centred) if second is None else second
        wanted = self.cross(centred=centred)
        # a difference of numbers that are nearly equal, but for what is to be made up for
        missing = wanted - torch.bmm(weight, second)
        return weight + torch.bmm(missing.float(), inverse.float())


@dataclass(frozen=True)
class Moments(FittedWeight):
    """Statistics of a layer's inputs `x` and of the outputs `y` that are wanted.

    Attributes:
        count: number of samples.
        mean_x: means of the inputs, float64 `[G, D]`.
        mean_y: means of the wanted outputs, float64 `[G, O]`.
        xx: centred products of inputs, `[G, D, D]`.
        yx: centred products of wanted outputs and inputs, `[G, O, D]`.
        yy: centred squares of wanted outputs, `[G, O]`.
    """

    count: int
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Moments | None:
        """Statistics of samples: `[G, N, D], [G, N, O]`; None if there are none."""
        found = None
        for a, b in zip(x.split(_PIECE, 1), y.split(_PIECE, 1), strict=True):
            found = merge(found, cls._of_piece(a, b))
        return found

    @classmethod
    def _of_piece(cls, x: Tensor, y: Tensor) -> Moments | None:
        if not x.shape[1]:
            return None
        (x, mean_x, dx), (y, mean_y, dy) = _centred(x), _centred(y)
        count = x.shape[1]
        xx, yx = _gram(x).double(), torch.bmm(y.mT, x).double()
        yy = _sum(y.square()).double()
        return cls(
            count, mean_x, mean_y, _add_outer(xx, dx, dx, -count), _add_outer(yx, dy, dx, -count),
            yy.sub_(dy.square(), alpha=count),
        )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, to be sent or written."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "count"}
        return {"count": torch.tensor(self.count), **named}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> Moments:
        """What `tensors` gave."""
        return cls(int(named["count"]), **{n: t for n, t in named.items() if n != "count"})

    def second(self, *, centred: bool) -> Tensor:
        """Second moments of the inputs, about their means or about zero: `[G, D, D]`."""
        found = self.xx / self.count
        if not centred:
            return _add_outer(found, self.mean_x, self.mean_x)
        # rounding alone may be indefinite
        variance = torch.diagonal(found, dim1=1, dim2=2)
        varies = variance > (_CONSTANT * self.mean_x).square()
        if bool(varies.all()):
            return found
        varies = varies.double()
        return found * varies[:, :, None] * varies[:, None, :]

    def cross(self, *, centred: bool) -> Tensor:
        """Second moments of wanted outputs and inputs: `[G, O, D]`."""
        found = self.yx / self.count
        return found if centred else _add_outer(found, self.mean_y, self.mean_x)

    def bias(self, weight: Tensor) -> Tensor:
        """The bias that takes the mean error away: `[G, O, D] -> [G, O]`.

        Source: the empirical bias correction of Nagel et al. 2019, "Data-Free Quantization Through
        Weight Equalization and Bias Correction", arXiv:1906.04721, appendix D.
        """
        return self.mean_y - torch.bmm(weight, self.mean_x[:, :, None])[:, :, 0]

    def without_bias(self, bias: Tensor) -> Moments:
        """Statistics of what is wanted without a bias, `[G, O]`; centred products are the same."""
        return replace(self, mean_y=self.mean_y - bias)


@dataclass(frozen=True)
class TiedMoments(FittedWeight):
    """Statistics of layers with one weight, each with the bias that it has.

    The loss of the weight is the sum of theirs. One that has a bias of its own takes its own mean
    error in.

    Attributes:
        parts: statistics of the layers, those with the same bias together.
        biased: for each part, whether there is a bias.
    """

    parts: tuple[Moments, ...]
    biased: tuple[bool, ...]

    @property
    def count(self) -> int:
        """Number of samples."""
        return sum(part.count for part in self.parts)

    def second(self, *, centred: bool) -> Tensor:
        """Second moments of the inputs, of those without a bias about zero: `[G, D, D]`."""
        return self._mean([p.second(centred=centred and b) for p, b in self._each()])

    def cross(self, *, centred: bool) -> Tensor:
        """Second moments of wanted outputs and inputs: `[G, O, D]`."""
        return self._mean([p.cross(centred=centred and b) for p, b in self._each()])

    def bias(self, weight: Tensor) -> Tensor:
        """The biases that take the mean errors away: `[G, O, D] -> [B, G, O]`."""
        found = [p.bias(weight) if b else torch.zeros_like(p.mean_y) for p, b in self._each()]
        return torch.stack(found)

    def without_bias(self, bias: Tensor) -> TiedMoments:
        """Statistics of what is wanted without biases, `[B, G, O]`."""
        pairs = zip(self.parts, bias, strict=True)
        return replace(self, parts=tuple(part.without_bias(own) for part, own in pairs))

    def _each(self) -> Iterator[tuple[Moments, bool]]:
        return zip(self.parts, self.biased, strict=True)

    def _mean(self, values: list[Tensor]) -> Tensor:
        found = values[0] * (self.parts[0].count / self.count)
        for part, value in zip(self.parts[1:], values[1:], strict=True):
            found.add_(value, alpha=part.count / self.count)
        return found


def merge(first: Moments | None, second: Moments | None) -> Moments | None:
    """Statistics of both sets of samples; the order does not matter but for rounding.

    Raises:
        ShapeMismatchError: FXQ440, they are of other layers.
    """
    if first is None or second is None:
        return second if first is None else first
    if first.yx.shape != second.yx.shape:
        what = f"moments of {tuple(first.yx.shape)} and {tuple(second.yx.shape)}"
        fix = "merge moments of one layer"
        raise ShapeMismatchError("FXQ440", f"{what} cannot be merged", fix=fix)
    count = first.count + second.count
    dx, dy = second.mean_x - first.mean_x, second.mean_y - first.mean_y
    share = first.count * second.count / count
    return Moments(
        count,
        first.mean_x + dx * (second.count / count),
        first.mean_y + dy * (second.count / count),
        _add_outer(first.xx + second.xx, dx, dx, share),
        _add_outer(first.yx + second.yx, dy, dx, share),
        first.yy + second.yy + dy.square() * share,
    )


def _add_outer(to: Tensor, a: Tensor, b: Tensor, share: float = 1.0) -> Tensor:
    """Add outer products in place: `[G, M, N], [G, M], [G, N] -> [G, M, N]`."""
    return to.baddbmm_(a[:, :, None], b[:, None, :], alpha=share)


def _gram(x: Tensor) -> Tensor:
    """Products of all pairs of columns, each pair computed once: `[G, N, D] -> [G, D, D]`."""
    width = x.shape[2]
    if width <= _BLOCK:
        return torch.bmm(x.mT, x)
    found = x.new_empty(len(x), width, width)
    for first in range(0, width, _BLOCK):
        last = min(first + _BLOCK, width)
        part = torch.bmm(x[:, :, first:last].mT, x[:, :, first:])
        found[:, first:last, first:] = part
        found[:, last:, first:last] = part[:, :, last - first :].mT
    return found


def _centred(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Samples nearly without their mean, the mean, and what is left of it, in float64.

    Args:
        x: samples, `[G, N, D]`.

    Returns:
        `[G, N, D]`, `[G, D]`, `[G, D]`.
    """
    mean = _sum(x) / x.shape[1]
    x = x - mean[:, None]
    # the sum of what is left is small, and so is its rounding
    left = _sum(x).double() / x.shape[1]
    return x, mean.double() + left, left


def _sum(x: Tensor) -> Tensor:
    """Sums over samples, as a product: groups lie in strides, over which `sum` is slow."""
    ones = x.new_ones(()).expand(len(x), 1, x.shape[1])
    return torch.bmm(ones, x)[:, 0]
