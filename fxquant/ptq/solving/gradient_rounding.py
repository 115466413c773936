"""Integers by gradient descent on a relaxed rounding, as AdaRound has it.

Without an activation behind the layer its error over all data is a quadratic of the weight, and is
minimized as one (`adaround`). The paper's own loss has the activation in it, and is minimized on
random rows of the data (`adaround_on_rows`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.ptq.solving.grids import quadratic

if TYPE_CHECKING:
    from fxquant.ptq.solving.grids import WeightGrid

# the sigmoid is stretched to these ends and cut to 0..1, so that it reaches both
_LOW, _HIGH = -0.1, 1.1


@dataclass(frozen=True)
class AdaroundOptions:
    """Options of the relaxed rounding.

    Attributes:
        iterations: steps of Adam.
        rate: learning rate.
        regularization: weight of the term that drives to 0 or 1.
        beta: first and last exponent of that term.
        warm_start: share of the iterations without that term.
    """

    iterations: int = 10_000
    rate: float = 1e-2
    regularization: float = 0.01
    beta: tuple[float, float] = (20.0, 2.0)
    warm_start: float = 0.2


def adaround(
    target: Tensor, moments: Tensor, grid: WeightGrid, options: AdaroundOptions | None = None
) -> Tensor:
    """Learn whether to round up or down.

    The mean squared error of the layer's output over the data is the quadratic of their second
    moments; it is minimized instead of the error on random batches.

    Args:
        target: the weight, `[G, O, D]`.
        moments: second moments of the inputs, `[G, D, D]`.
        grid: the grid.
        options: see `AdaroundOptions`.

    Returns:
        Centred integers, `[G, O, D]`.

    Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
    arXiv:2004.10568, equations 21 to 25.
    """
    given = options or AdaroundOptions()

    def loss(weight: Tensor) -> Tensor:
        return quadratic(weight - target, moments).sum()

    return _minimized(target, grid, given, loss)


def adaround_on_rows(
    weight: Tensor,
    rows: Rows,
    grid: WeightGrid,
    options: AdaroundOptions | None = None,
    *,
    batch: int = 512,
    seed: int = 0,
) -> Tensor:
    """Learn whether to round up or down by outputs behind the activation, on random rows.

    Args:
        weight: the float weight, `[G, O, D]`.
        rows: inputs of the quantized model and outputs of the float model.
        grid: the grid.
        options: see `AdaroundOptions`.
        batch: rows that are looked at in a step.
        seed: of their choice.

    Returns:
        Centred integers, `[G, O, D]`.

    Source: arXiv:2004.10568, equation 25, with the regularizer of equation 24.
    """
    generator = torch.Generator().manual_seed(seed)
    count = rows.x.shape[1]

    def loss(tried: Tensor) -> Tensor:
        if count <= batch:
            return rows.loss(tried).sum()
        chosen = torch.randint(count, (batch,), generator=generator).to(weight.device)
        return rows.part(chosen).loss(tried).sum()

    return _minimized(weight, grid, options or AdaroundOptions(), loss)


@dataclass(frozen=True)
class Rows:
    """What a layer is given and should put out, row by row.

    Attributes:
        x: inputs, `[G, N, D]`.
        y: wanted outputs without the activation, `[G, N, O]`.
        bias: the layer's bias, `[G, O]`.
        activation: what follows the layer, element by element; None: nothing.
    """

    x: Tensor
    y: Tensor
    bias: Tensor
    activation: Callable[[Tensor], Tensor] | None = None

    def part(self, chosen: Tensor) -> Rows:
        """Some of the rows."""
        return Rows(self.x[:, chosen], self.y[:, chosen], self.bias, self.activation)

    def loss(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Mean squared error of every output channel: `[G, O, D] -> [G, O]`."""
        shift = self.bias if bias is None else bias
        found, wanted = torch.baddbmm(shift[:, None], self.x, weight.mT), self.y
        if self.activation is not None:
            found, wanted = self.activation(found), self.activation(wanted)
        return (found - wanted).square().mean(1)


def _minimized(
    weight: Tensor, grid: WeightGrid, given: AdaroundOptions, loss: Callable[[Tensor], Tensor]
) -> Tensor:
    """Integers next to a weight that make a loss of the weight on its grid small."""
    scale, low, high = (grid.spread(r) for r in (grid.scale, grid.low, grid.high))
    below = torch.floor(weight / scale)
    share = (weight / scale - below).clamp(1e-4, 1 - 1e-4)
    with torch.enable_grad():
        v = -torch.log((_HIGH - _LOW) / (share - _LOW) - 1)
        v = v.detach().requires_grad_()
        optimizer = torch.optim.Adam([v], lr=given.rate)
        for step in range(given.iterations):
            optimizer.zero_grad()
            up = _relaxed(v)
            integers = torch.minimum(torch.maximum(below + up, low), high)
            total = loss(integers * scale) + _pull(up, step / given.iterations, given)
            total.backward()
            optimizer.step()
    up = (_relaxed(v.detach()) >= 0.5).to(weight.dtype)
    return torch.minimum(torch.maximum(below + up, low), high)


def _relaxed(v: Tensor) -> Tensor:
    return (torch.sigmoid(v) * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def _pull(up: Tensor, progress: float, given: AdaroundOptions) -> Tensor | float:
    """The regularizer `sum(1 - |2 h - 1| ** beta)`, with a falling exponent."""
    if progress < given.warm_start:
        return 0.0
    left = (progress - given.warm_start) / (1 - given.warm_start)
    first, last = given.beta
    beta = last + 0.5 * (first - last) * (1 + math.cos(left * math.pi))
    return given.regularization * (1 - (2 * up - 1).abs().pow(beta)).sum()
