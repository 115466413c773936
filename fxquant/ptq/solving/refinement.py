"""Weight, step and bias of one layer refined together by gradient descent, as AdaQuant has it.

AdaRound chooses between the two integers next to a weight; here a weight may move as far as it
pays. What is learned lies in units of the step, so that a step can change without moving integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fxquant.ptq.solving.gradient_rounding import Rows
    from fxquant.ptq.solving.grids import WeightGrid

# how near to the next integer a weight may start
_NEAR = 0.45
_CHECKS = 10  # how often it is looked whether the rows held out are better off


@dataclass(frozen=True)
class RefinementOptions:
    """Options of `refine`.

    Attributes:
        iterations: steps of Adam.
        rate: learning rate of weights, in steps of their grid.
        scale_rate: learning rate of the logarithms of steps; 0: they stay.
        bias_rate: learning rate of biases, in root mean squares of the layer's error; 0: they stay.
        batch: rows that are looked at in a step.
    """

    iterations: int = 500
    rate: float = 0.005
    scale_rate: float = 1e-3
    bias_rate: float = 0.02
    batch: int = 2048


@dataclass(frozen=True)
class Refined:
    """What was found; never worse on the rows held out than what it started from.

    Attributes:
        integers: centred integers, `[G, O, D]`.
        grid: the grid with its steps.
        bias: the bias, `[G, O]`.
        loss: loss on the rows held out.
    """

    integers: Tensor
    grid: WeightGrid
    bias: Tensor
    loss: float


def refine(
    start: Refined,
    wish: Tensor,
    seen: Rows,
    held: Rows,
    options: RefinementOptions,
    *,
    seed: int = 0,
) -> Refined:
    """Refine integers, steps and bias by the outputs behind the activation.

    Args:
        start: what is refined; its `loss` is not looked at.
        wish: the real weight that integers start near to where they can, `[G, O, D]`.
        seen: rows to learn from.
        held: rows to judge by.
        options: see `RefinementOptions`.
        seed: of the choice of rows.

    Source: Hubara et al. 2020, "Improving Post Training Neural Quantization: Layer-wise Calibration
    and Integer Programming", arXiv:2006.10518, equation 2, with the layer's step and bias as
    further variables and the activation in the loss; gradients pass through the rounding
    (straight-through), and a step's is that of its integers.
    """
    state = _State(start, wish, seen, options)
    before = held.loss(start.grid.weight(start.integers), start.bias)
    best = replace(start, loss=float(before.sum()))
    generator = torch.Generator().manual_seed(seed)
    count, every = seen.x.shape[1], max(1, options.iterations // _CHECKS)
    with torch.enable_grad():
        for step in range(options.iterations):
            rows = seen
            if count > options.batch:
                chosen = torch.randint(count, (options.batch,), generator=generator)
                rows = seen.part(chosen.to(seen.x.device))
            state.descend(rows, step / options.iterations)
            if (step + 1) % every == 0:
                now = state.now(held)
                best = now if now.loss < best.loss else best
    return best


class _State:
    """What is learned: weights in steps, logarithms of steps against the start's, and biases."""

    def __init__(
        self, start: Refined, wish: Tensor, seen: Rows, options: RefinementOptions
    ) -> None:
        grid = start.grid
        self.grid, self.bias = grid, start.bias
        self.low, self.high = grid.spread(grid.low), grid.spread(grid.high)
        left = (wish / grid.spread(grid.scale) - start.integers).clamp(-_NEAR, _NEAR)
        inside = start.integers.clamp(self.low, self.high)
        self.places = (inside + left).detach().requires_grad_()
        self.logs = torch.zeros_like(grid.scale).requires_grad_()
        self.shift = torch.zeros_like(start.bias).requires_grad_()
        loss = seen.loss(grid.weight(start.integers), start.bias)
        self.unit = loss.mean().sqrt()
        self.free = not grid.frozen and not grid.power_of_two and options.scale_rate > 0
        rates = {self.places: options.rate, self.shift: options.bias_rate}
        if self.free:
            rates[self.logs] = options.scale_rate
        self.rates = {k: rate for k, rate in rates.items() if rate > 0}
        groups = [{"params": [k], "lr": rate} for k, rate in self.rates.items()]
        self.adam = torch.optim.Adam(groups)

    def scale(self) -> Tensor:
        """The steps, `[R, B]`."""
        if not self.free:
            return self.grid.scale
        scale = self.grid.scale * self.logs.exp()
        return scale if self.grid.least is None else torch.maximum(scale, self.grid.least)

    def integers(self) -> Tensor:
        """Rounded and clipped; gradients pass through as if they were not rounded."""
        clipped = torch.minimum(torch.maximum(self.places, self.low), self.high)
        return clipped + (clipped.round() - clipped).detach()

    def descend(self, rows: Rows, progress: float) -> None:
        """One step, slower and slower."""
        for group, rate in zip(self.adam.param_groups, self.rates.values(), strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * progress))
        self.adam.zero_grad()
        weight = self.integers() * self.grid.spread(self.scale())
        rows.loss(weight, self.bias + self.unit * self.shift).sum().backward()
        self.adam.step()

    @torch.no_grad()
    def now(self, held: Rows) -> Refined:
        """What has been learned so far, and its loss."""
        grid = self.grid.with_scale(self.scale().detach().clone())
        integers = self.integers().detach().clone()
        bias = (self.bias + self.unit * self.shift).detach().clone()
        return Refined(integers, grid, bias, float(held.loss(grid.weight(integers), bias).sum()))
