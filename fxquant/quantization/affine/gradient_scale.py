"""The gradient scale of learned ranges: LSQ (Esser et al. 2020, arXiv:1902.08153, section 2.2).

The gradient of a step is a sum over all elements that are rounded to it, and grows with their
number; that of a weight is not. Multiplied by `1 / sqrt(N * Q)`, with `N` elements for one range
and `Q` steps above zero, a step moves in proportion to itself about as much as the weights do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fxquant.quantization.range_to_qparams import IntegerRange

Counted = Literal["parameter", "activation"]


def gradient_scale(x: Tensor, ranges: int, grid: IntegerRange, counted: Counted) -> float:
    """What the gradient of a range is multiplied by.

    Args:
        x: the tensor that is quantized; of activations the first axis is the batch, whose loss is a
            mean: samples do not count.
        ranges: number of ranges of the quantizer.
        grid: the integers.
        counted: what the tensor is.
    """
    samples = x.shape[0] if counted == "activation" and x.dim() > 1 else 1
    elements = max(1, x.numel() // max(1, samples * ranges))
    above = grid.qmax - grid.middle if grid.symmetric else grid.steps
    return 1.0 / math.sqrt(elements * above)


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * ctx.factor, None


def with_gradient_scale(end: Tensor, factor: float) -> Tensor:
    """An end of a range with a scaled gradient, in a form that a compiler can follow."""
    return _Scaled.apply(end, factor)  # type: ignore[no-any-return, no-untyped-call]
