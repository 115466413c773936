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
PIECE = 4096
# columns whose products with those behind them are formed at once
_BLOCK = 192
_ALL = slice(None)


class FittedWeight:
    """What moments of any kind say of a layer's weight."""

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        raise NotImplementedError

    def second(self, *, centred: bool, rows: slice = _ALL) -> Tensor:
        """Second moments of the inputs, about their means or about zero: `[G, D, D]`.

        Args:
            centred: about their means.
            rows: rows of the matrix that are wanted.
        """
        raise NotImplementedError

    def cross(self, *, centred: bool) -> Tensor:
        """Second moments of wanted outputs and inputs: `[G, O, D]`."""
        raise NotImplementedError

    def damped(self, share: float, *, centred: bool, dtype: torch.dtype) -> Tensor:
        """Second moments with a share of their mean diagonal added to the diagonal, `[G, D, D]`.

        They are made a block of rows after the other: no second matrix in float64 is needed.
        """
        found: Tensor | None = None
        diagonals = []
        for rows in _blocks(self.inputs):
            part = self.second(centred=centred, rows=rows)
            diagonals.append(torch.diagonal(part, rows.start, dim1=1, dim2=2).clone())
            if found is None:
                found = part.new_empty(len(part), self.inputs, self.inputs, dtype=dtype)
            found[:, rows] = part
        if found is None:
            msg = "moments of no inputs"
            raise RuntimeError(msg)
        diagonal = torch.cat(diagonals, 1)
        mean = diagonal.mean(1)
        diagonal += torch.where(mean > 0, share * mean, 1.0)[:, None]
        torch.diagonal(found, dim1=1, dim2=2).copy_(diagonal)
        return found

    def target(self, weight: Tensor, inverse: Tensor, *, centred: bool) -> Tensor:
        """The weight that makes the wanted outputs of these inputs best, before any rounding.

        The least-squares solution `E[y x^T] E[x x^T]^-1`, drawn towards the given weight where the
        data say little: `W + (E[y x^T] - W H) (H + a I)^-1`.

        Args:
            weight: the layer's weight, `[G, O, D]`.
            inverse: inverse of the damped second moments, `(H + a I)^-1`, `[G, D, D]`.
            centred: whether the layer has a bias, which takes the means in.

        Source: the normal equations behind Frantar and Alistarh 2022, "Optimal Brain Compression",
        arXiv:2208.11580, section 4, with the outputs of the float model as what is wanted.
        """
        # a difference of numbers that are nearly equal, but for what is to be made up for
        missing = self.cross(centred=centred)
        for part in _blocks(self.inputs):  # rows are columns of what is symmetric
            missing[:, :, part] -= torch.bmm(weight, self.second(centred=centred, rows=part).mT)
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
        for a, b in zip(x.split(PIECE, 1), y.split(PIECE, 1), strict=True):
            found = cls.with_piece(found, a.clone(), b.clone())
        return found

    @classmethod
    def with_piece(cls, found: Moments | None, x: Tensor, y: Tensor) -> Moments | None:
        """Statistics with those of further samples, `[G, N, D], [G, N, O]`.

        The tensors of all three are used up: nothing of their sizes is needed beside them.
        """
        count = x.shape[1]
        if not count:
            return found
        (mean_x, dx), (mean_y, dy) = _centre(x), _centre(y)
        found = found or cls._zeros(mean_x, mean_y)
        _add_gram(found.xx, x, dx)
        _add_products(found.yx, torch.bmm(y.mT, x), dy, dx, count)
        found.yy.add_(_sum(y.square_()).double().sub_(dy.square(), alpha=count))
        total = found.count + count
        share = found.count * count / total
        dx, dy = mean_x - found.mean_x, mean_y - found.mean_y
        return cls(
            total,
            found.mean_x + dx * (count / total),
            found.mean_y + dy * (count / total),
            _add_outer(found.xx, dx, dx, share),
            _add_outer(found.yx, dy, dx, share),
            found.yy.add_(dy.square(), alpha=share),
        )

    @classmethod
    def _zeros(cls, x: Tensor, y: Tensor) -> Moments:
        """Statistics of no samples; what is given are means."""
        (groups, inputs), outputs = x.shape, y.shape[1]
        return cls(
            0, torch.zeros_like(x), torch.zeros_like(y), x.new_zeros(groups, inputs, inputs),
            x.new_zeros(groups, outputs, inputs), torch.zeros_like(y),
        )  # fmt: skip

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return self.xx.shape[1]

    def means_alone(self) -> Moments:
        """Statistics without their products, for biases."""
        return replace(self, xx=self.xx.new_empty(0), yx=self.yx.new_empty(0))

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, to be sent or written."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "count"}
        return {"count": torch.tensor(self.count), **named}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> Moments:
        """What `tensors` gave."""
        return cls(int(named["count"]), **{n: t for n, t in named.items() if n != "count"})

    def second(self, *, centred: bool, rows: slice = _ALL) -> Tensor:
        """Second moments of the inputs, about their means or about zero: `[G, D, D]`."""
        found = self.xx[:, rows] / self.count
        if not centred:
            return _add_outer(found, self.mean_x[:, rows], self.mean_x)
        # rounding alone may be indefinite
        variance = torch.diagonal(self.xx, dim1=1, dim2=2) / self.count
        varies = variance > (_CONSTANT * self.mean_x).square()
        if bool(varies.all()):
            return found
        varies = varies.double()
        return found.mul_(varies[:, rows, None]).mul_(varies[:, None, :])

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

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return self.parts[0].inputs

    def means_alone(self) -> TiedMoments:
        """Statistics without their products, for biases."""
        return replace(self, parts=tuple(part.means_alone() for part in self.parts))

    def second(self, *, centred: bool, rows: slice = _ALL) -> Tensor:
        """Second moments of the inputs, of those without a bias about zero: `[G, D, D]`."""
        return self._mean([p.second(centred=centred and b, rows=rows) for p, b in self._each()])

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


def _blocks(width: int) -> Iterator[slice]:
    for first in range(0, width, _BLOCK):
        yield slice(first, min(first + _BLOCK, width))


def _add_gram(to: Tensor, x: Tensor, left: Tensor) -> None:
    """Add products of all pairs of columns, each pair computed once: `[G, D, D], [G, N, D]`."""
    for part in _blocks(x.shape[2]):
        behind = slice(part.start, None)
        products = torch.bmm(x[:, :, part].mT, x[:, :, behind])
        _add_products(to[:, part, behind], products, left[:, part], left[:, behind], x.shape[1])
        to[:, part.stop :, part] = to[:, part, part.stop :].mT


def _add_products(to: Tensor, products: Tensor, a: Tensor, b: Tensor, count: int) -> None:
    """Add float32 products of samples that have means left: `[G, M, N] x2, [G, M], [G, N]`."""
    for rows in _blocks(products.shape[1]):
        to[:, rows] += _add_outer(products[:, rows].double(), a[:, rows], b, -count)


def _centre(x: Tensor) -> tuple[Tensor, Tensor]:
    """Take most of their mean off samples, in place: the mean, and what is left of it, in float64.

    Args:
        x: samples, `[G, N, D]`.

    Returns:
        `[G, D]` both.
    """
    mean = _sum(x) / x.shape[1]
    x.sub_(mean[:, None])
    # the sum of what is left is small, and so is its rounding
    left = _sum(x).double() / x.shape[1]
    return mean.double() + left, left


def _sum(x: Tensor) -> Tensor:
    """Sums over samples, as a product: groups lie in strides, over which `sum` is slow."""
    ones = x.new_ones(()).expand(len(x), 1, x.shape[1])
    return torch.bmm(ones, x)[:, 0]
