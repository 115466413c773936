"""Integers and scale of one layer's weight: a pure function of its target, moments and grid.

The loss of a weight `w` against a target `t` is `(w - t) H (w - t)^T` per output channel, with the
second moments `H` of the layer's inputs: the mean squared error that the layer's output gets. For
inputs that are quantized as well, the target is the one of `fxquant.ptq.moments`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from fxquant.errors import ConfigError, nearest
from fxquant.ptq.solving.gradient_rounding import AdaroundOptions, adaround
from fxquant.ptq.solving.grids import quadratic
from fxquant.ptq.solving.rounding import descend, gptq
from fxquant.ptq.solving.scales import refit, search

if TYPE_CHECKING:
    from fxquant.ptq.solving.grids import WeightGrid

Method = Literal["nearest", "scale_search", "gptq", "descend", "adaround"]
METHODS: tuple[Method, ...] = get_args(Method)
# their integers are next to the real numbers, so the scale is searched for such integers
_ROUNDED_ONLY = ("scale_search", "adaround")
# inputs from which on factors are computed in float32: measured, integers are as good by them
_LARGE = 256
# inputs up to which several steps are tried, as shares of the one that was searched
_SMALL, _SHARES = 64, (1.0, 0.7, 0.8, 0.9, 1.1, 1.2)


@dataclass(frozen=True)
class SolverOptions:
    """How integers and scale are found.

    Attributes:
        method: "nearest": the nearest integers on the grid as it is; "scale_search": on the best
            scale; "gptq": GPTQ on the best scale; "descend": the same, then coordinate descent in
            turns with the closed form of the scale; "adaround": gradient descent on the rounding.
        damping: added to the diagonal of the moments, as a share of its mean, where samples are
            many; `reconstruct` adds more where they are few for the inputs of a layer.
        search_scale: whether "gptq", "descend" and "adaround" search the scale first; `reconstruct`
            keeps the scale where samples are few for the inputs of a layer.
        refits: how often the scale is fitted to the integers, which then descend again.
        adaround: options of that method.
    """

    method: Method = "descend"
    damping: float = 0.01
    search_scale: bool = True
    refits: int = 3
    adaround: AdaroundOptions = field(default_factory=AdaroundOptions)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            fix = nearest(str(self.method), METHODS) or f"use one of {', '.join(METHODS)}"
            raise ConfigError("FXQ290", f"unknown method {self.method!r}", fix=fix)


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        integers: centred integers, `[G, O, D]`.
        grid: the grid with its steps.
    """

    integers: Tensor
    grid: WeightGrid

    @property
    def scale(self) -> Tensor:
        """Steps, `[R, B]`."""
        return self.grid.scale

    @property
    def weight(self) -> Tensor:
        """Real values, `[G, O, D]`."""
        return self.grid.weight(self.integers)

    def loss(self, target: Tensor, moments: Tensor) -> Tensor:
        """Mean squared error of every output channel, `[G, O]`."""
        return quadratic(self.weight - target, moments)


@torch.no_grad()
def solve(
    target: Tensor,
    moments: Tensor,
    grid: WeightGrid,
    options: SolverOptions | None = None,
    *,
    inverse: Tensor | None = None,
) -> Solution:
    """Find integers and scale.

    Args:
        target: what the weight should be, `[G, O, D]`.
        moments: second moments of the inputs, positive definite (see `damp`), `[G, D, D]`.
        grid: ranges with their start; tensors of the target's type.
        options: see `SolverOptions`.
        inverse: inverse of the moments, if it is known.

    Returns:
        Integers and scale. With "descend" the loss is never above that of the nearest integers on
        the best scale that was found.

    Example:
        >>> from fxquant.ptq.solving.grids import WeightGrid
        >>> target, moments = torch.tensor([[[0.3, -0.8]]]), torch.eye(2)[None]
        >>> solve(target, moments, WeightGrid.uniform(target, 4)).weight
        tensor([[[ 0.3000, -0.8000]]])
    """
    given = options or SolverOptions()
    if given.method == "nearest":
        return Solution(grid.nearest(target), grid)
    start = grid
    if given.search_scale or given.method == "scale_search":
        start = search(target, moments, grid, correlated=given.method in _ROUNDED_ONLY)
    if given.method == "scale_search":
        return Solution(start.nearest(target), start)
    if given.method == "adaround":
        return Solution(adaround(target, moments, start, given.adaround), start)
    inverse = inverse_of(moments) if inverse is None else inverse
    if given.method == "gptq":
        return Solution(gptq(target, inverse, start), start)
    # the best step for integers that are not nearest ones is another one: where it costs little,
    # several are tried
    several = tried_steps(target.shape[-1]) > 1 and given.search_scale
    shares = _SHARES if several else (1.0,)
    tried = start.repeated(shares)
    wanted = target.repeat(1, len(shares), 1) if len(shares) > 1 else target
    found = _descended(gptq(wanted, inverse, tried), wanted, moments, tried, given)
    return found if len(shares) == 1 else _best_of(found, start, target, moments)


def damp(moments: Tensor, share: float) -> Tensor:
    """Moments with a share of their mean diagonal added to the diagonal, `[G, D, D]`."""
    mean = torch.diagonal(moments, dim1=1, dim2=2).mean(1)
    damped = moments.clone()
    diagonal = torch.diagonal(damped, dim1=1, dim2=2)
    diagonal += torch.where(mean > 0, share * mean, 1.0)[:, None]
    return damped


def tried_steps(inputs: int) -> int:
    """How many steps are tried for an output of so many inputs."""
    return len(_SHARES) if inputs <= _SMALL else 1


def factor_type(inputs: int) -> torch.dtype:
    """The type in which moments of so many inputs are factored, if that is enough."""
    return torch.float32 if inputs >= _LARGE else torch.float64


def inverse_of(moments: Tensor) -> Tensor:
    """Inverse of damped moments, `[G, D, D]`; in float32 where it is large and that is enough."""
    if factor_type(moments.shape[-1]) == torch.float32:
        # column after column, as LAPACK has it: factor and inverse take the place of the copy
        factor = moments.mT.to(torch.float32, copy=True, memory_format=torch.contiguous_format).mT
        failed = torch.zeros(len(factor), dtype=torch.int32, device=factor.device)
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
        if not bool(failed.any()):
            return torch.cholesky_inverse(factor, out=factor)
        del factor
    return torch.cholesky_inverse(torch.linalg.cholesky(moments.double()))


def _descended(
    integers: Tensor, target: Tensor, moments: Tensor, grid: WeightGrid, given: SolverOptions
) -> Solution:
    """Coordinate descent in turns with the scale, from the better of two starts in every range."""
    integers, slope = _better(integers, grid.nearest(target), target, moments, grid)
    pulled = torch.bmm(target, moments)
    integers, slope = descend(integers, target, moments, grid, slope=slope)
    for _ in range(given.refits):
        grid, slope = refit(integers, slope, pulled, moments, grid)
        again, slope = descend(integers, target, moments, grid, slope=slope)
        if torch.equal(again, integers):
            break
        integers = again
    return Solution(integers, grid)


def _better(
    first: Tensor, second: Tensor, target: Tensor, moments: Tensor, grid: WeightGrid
) -> tuple[Tensor, Tensor]:
    """Of two sets of integers the better one in every row range, and the slope there."""
    slopes, losses = [], []
    for integers in (first, second):
        error = grid.weight(integers) - target
        slopes.append(torch.bmm(error, moments))
        losses.append(grid.by_rows(error.mul_(slopes[-1]).sum(-1)))
    worse = (losses[0] > losses[1])[grid.rows][:, :, None]
    return torch.where(worse, second, first), torch.where(worse, slopes[1], slopes[0])


def _best_of(found: Solution, grid: WeightGrid, target: Tensor, moments: Tensor) -> Solution:
    """Of the repetitions of every row range, the one with the smallest loss."""
    groups, outs, ins = target.shape
    count = len(grid.scale)
    losses = quadratic(found.weight - target.repeat(1, found.integers.shape[1] // outs, 1), moments)
    best = found.grid.by_rows(losses).reshape(-1, count).argmin(0)  # [R]
    scale = found.scale.reshape(-1, count, grid.scale.shape[1])
    scale = scale[best, torch.arange(count, device=best.device)]
    index = best[grid.rows][:, None, :, None].expand(-1, -1, -1, ins)
    integers = found.integers.reshape(groups, -1, outs, ins).gather(1, index)[:, 0]
    return Solution(integers, grid.with_scale(scale))
