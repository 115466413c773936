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
from fxquant.ptq.gradient_rounding import AdaroundOptions, adaround
from fxquant.ptq.grids import quadratic
from fxquant.ptq.rounding import descend, gptq
from fxquant.ptq.scales import refit, search

if TYPE_CHECKING:
    from fxquant.ptq.grids import WeightGrid

Method = Literal["nearest", "scale_search", "gptq", "descend", "adaround"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class SolverOptions:
    """How integers and scale are found.

    Attributes:
        method: "nearest": the nearest integers on the grid as it is; "scale_search": on the best
            scale; "gptq": GPTQ on the best scale; "descend": the same, then coordinate descent in
            turns with the closed form of the scale; "adaround": gradient descent on the rounding.
        damping: added to the diagonal of the moments, as a share of its mean.
        search_scale: whether "gptq", "descend" and "adaround" search the scale first.
        sweeps: of coordinate descent, each time.
        refits: how often the scale is fitted to the integers, which then descend again.
        adaround: options of that method.
    """

    method: Method = "descend"
    damping: float = 0.01
    search_scale: bool = True
    sweeps: int = 3
    refits: int = 2
    adaround: AdaroundOptions = field(default_factory=AdaroundOptions)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            fix = nearest(str(self.method), METHODS) or f"use one of {', '.join(METHODS)}"
            raise ConfigError("FXQ250", f"unknown method {self.method!r}", fix=fix)


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
    target: Tensor, moments: Tensor, grid: WeightGrid, options: SolverOptions | None = None
) -> Solution:
    """Find integers and scale.

    Args:
        target: what the weight should be, float64 `[G, O, D]`.
        moments: second moments of the inputs, positive semidefinite, float64 `[G, D, D]`.
        grid: ranges with their start.
        options: see `SolverOptions`.

    Returns:
        Integers and scale. With "descend" the damped loss is never above that of the nearest
        integers on the grid as it was given.

    Example:
        >>> from fxquant.ptq.grids import WeightGrid
        >>> target, moments = torch.tensor([[[0.3, -0.8]]]), torch.eye(2)[None]
        >>> solve(target, moments, WeightGrid.uniform(target, 4)).weight
        tensor([[[ 0.3000, -0.8000]]])
    """
    given = options or SolverOptions()
    if given.method == "nearest":
        return Solution(grid.nearest(target), grid)
    damped = damp(moments, given.damping)
    used = _used(moments)
    if used.all():
        return _solved(target, damped, grid, given)
    # inputs that never vary are uncorrelated with all others: only their own grid counts
    if not used.any():
        return _search_only(target, damped, grid, given)
    columns = torch.nonzero(used)[:, 0]
    part = _solved(
        target[:, :, columns], damped[:, columns][:, :, columns], grid.part(columns), given
    )
    grid = grid.with_scale(part.scale)
    integers = grid.nearest(target)
    integers[:, :, columns] = part.integers
    return Solution(integers, grid)


def damp(moments: Tensor, share: float) -> Tensor:
    """Moments with a share of their mean diagonal added to the diagonal, `[G, D, D]`."""
    mean = torch.diagonal(moments, dim1=1, dim2=2).mean(1)
    mean = torch.where(mean > 0, mean, 1.0)
    eye = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device)
    return moments + eye * (share * mean)[:, None, None]


def _used(moments: Tensor) -> Tensor:
    """Columns that vary in some group, `[D]`."""
    diagonal = torch.diagonal(moments, dim1=1, dim2=2)
    return (diagonal > 1e-12 * diagonal.amax(1, keepdim=True)).any(0)


def _search_only(
    target: Tensor, damped: Tensor, grid: WeightGrid, given: SolverOptions
) -> Solution:
    found = search(target, damped, grid) if given.search_scale else grid
    return Solution(found.nearest(target), found)


def _solved(target: Tensor, damped: Tensor, grid: WeightGrid, given: SolverOptions) -> Solution:
    if given.search_scale or given.method == "scale_search":
        start = search(target, damped, grid)
    else:
        start = grid
    if given.method == "scale_search":
        return Solution(start.nearest(target), start)
    if given.method == "adaround":
        return Solution(adaround(target, damped, start, given.adaround), start)
    integers = gptq(target, damped, start)
    if given.method == "gptq":
        return Solution(integers, start)
    return _descended(integers, target, damped, start, given)


def _descended(
    integers: Tensor, target: Tensor, damped: Tensor, grid: WeightGrid, given: SolverOptions
) -> Solution:
    """Coordinate descent in turns with the scale, from the better of two starts in every range."""
    plain = grid.nearest(target)
    losses = [grid.by_rows(quadratic(grid.weight(k) - target, damped)) for k in (integers, plain)]
    worse = losses[0] > losses[1]
    integers = torch.where(worse[grid.rows][:, :, None], plain, integers)
    integers = descend(integers, target, damped, grid, sweeps=given.sweeps)
    for _ in range(given.refits):
        grid = refit(integers, target, damped, grid)
        integers = descend(integers, target, damped, grid, sweeps=given.sweeps)
    return Solution(integers, grid)
