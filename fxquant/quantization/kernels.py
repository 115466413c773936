"""Quantization of tensors: `clamp(round(x / scale) + zero_point, qmin, qmax)` and back, in float32.

The arithmetic is that of ONNX QuantizeLinear and DequantizeLinear, bit for bit: a true division
(a product with the reciprocal differs in a few values of a million), ties to even, saturation.

Why in place: a chain of in-place steps over one fresh tensor runs at three times the cost of a copy
and is vectorized by PyTorch for every layout; the built-in fake-quantize operators take fifty times
the cost of a copy and multiply by the reciprocal. Where the range is fixed, the gradient (see
`surrogate.py`) needs to know which elements are clipped, a bit each (see `clipping.py`). Where it
is learned, the gradient needs input and output, and the output is computed from the input.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxquant.quantization.clipping import NOTHING, is_kept_anyway
from fxquant.quantization.pieces import in_one, pieces
from fxquant.quantization.range_to_qparams import Factors
from fxquant.quantization.recomputing import Kept, Result, function_of, hooks_are_free
from fxquant.quantization.surrogate import (
    Extremes,
    clipped_by,
    extremes_of,
    factors_for,
    finite,
    gradients_of_many,
    gradients_of_one,
    inside,
    kept,
    none_clipped,
)

_ZERO = torch.zeros(())
_SMALL = 1 << 14  # elements up to which it does not matter where a tensor lies

Lazy = Callable[[], Factors]


@dataclass(frozen=True, slots=True)
class Affine:
    """Step and zero point, shaped to broadcast against the tensor.

    Attributes:
        scale: step of the grid, float32 `[S]`.
        zero_point: integer that stands for 0.0, as a float, `[S]`.
        qmin: smallest integer.
        qmax: largest integer.
        numbers: `(scale, zero_point)` as Python numbers if there is one step, on the CPU.
        centred: True if every zero point is known to be 0.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: float
    qmax: float
    numbers: tuple[float, float] | None = None
    centred: bool = False


def affine(
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    *,
    single: bool = False,
    centred: bool = False,
) -> Affine:
    """Parameters of a quantization; `single` reads the numbers out, so on the CPU only."""
    if qmax > 2**24:
        # the largest float32 that an int32 can hold
        qmax = min(qmax, 2**31 - 128) if qmin < 0 else min(qmax, 2**32 - 256)
    numbers = None
    if single and scale.device.type == "cpu":
        numbers = (scale.item(), zero_point.item())
    return Affine(scale, zero_point, float(qmin), float(qmax), numbers, centred)


def quantize(x: Tensor, p: Affine) -> Tensor:
    """Integers of the grid, stored as floats: `[...] -> [...]`."""
    y = torch.div(x, p.scale).round_()
    return y.add_(p.zero_point).clamp_(p.qmin, p.qmax)


def dequantize(q: Tensor, p: Affine) -> Tensor:
    """Real values of integers that are stored as floats: `[...] -> [...]`."""
    return torch.sub(q, p.zero_point).mul_(p.scale)


def quantize_dequantize(x: Tensor, p: Affine) -> Tensor:
    """The nearest values of the grid: `dequantize(quantize(x))`, bit for bit: `[...] -> [...]`."""
    y = _empty_like(x)
    if in_one(x):
        return _rounded(torch.div(x, p.scale, out=y), p, p.scale, p.zero_point)
    for (part, out), (scale, zero) in pieces((x, y), (p.scale, p.zero_point)):
        _rounded(torch.div(part, scale, out=out), p, scale, zero)
    return y


def _empty_like(x: Tensor) -> Tensor:
    """Memory for a result, which lives but for a layer or two.

    PyTorch asks the allocator for aligned memory, and what it gives back is some bytes too small to
    be used for a tensor of the same size: in a training step every layer would leave a hole in the
    heap. Memory without alignment fits into such holes.
    """
    plain = x.is_cpu and x.dtype is torch.float32 and x.is_contiguous()
    if not plain or x.numel() <= _SMALL:
        return torch.empty_like(x)
    return torch.from_numpy(np.empty(x.shape, np.float32))


def _rounded(y: Tensor, p: Affine, scale: Tensor, zero: Tensor) -> Tensor:
    """`x / scale` to values of the grid, in place."""
    if p.numbers is not None:
        step, middle = p.numbers
        # the zero point goes into the bounds: the same integers in two passes less
        y.round_().clamp_(p.qmin - middle, p.qmax - middle)
        # 0 + y * scale: the runtime has no -0.0
        return torch.add(_ZERO, y, alpha=step, out=y)
    # with a zero point of 0 as well: adding it turns -0.0 into 0.0
    y.round_().add_(zero).clamp_(p.qmin, p.qmax)
    return (y if p.centred else y.sub_(zero)).mul_(scale)


class _QuantizeDequantize(torch.autograd.Function):
    """`quantize_dequantize` with gradients for the tensor and for the two ends of the range."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, second: Tensor, p: Affine, factors: Lazy, found: Found
    ) -> Tensor:
        y = quantize_dequantize(x, p)
        again = Again(
            functools.partial(quantize_dequantize, p=p),
            lambda x: apply(x, first, second, p, factors),
        )
        keep_for_backward(ctx, x, p, factors, again, found)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return *gradients(ctx, g), None, None, None


@dataclass(frozen=True, slots=True)
class Again:
    """Computes the result of a quantizer from its input.

    Attributes:
        plain: without a graph.
        differentiable: with gradients for the tensor and for both ends of the range.
    """

    plain: Callable[[Tensor], Tensor]
    differentiable: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Found:
    """What is known when a tensor is quantized.

    Attributes:
        extremes: smallest and largest element of each range, `[S]` each, if known.
        result: where it is noted how to compute the result again; None where it is not to be.
    """

    extremes: Extremes | None = None
    result: Result | None = None


def keep_for_backward(
    ctx: Any, x: Tensor, p: Affine, factors: Lazy, again: Again, found: Found
) -> None:
    """Save what `gradients` needs.

    Args:
        ctx: of a function whose first three inputs are the tensor and both ends of the range.
        x: the tensor.
        p: step and zero point.
        factors: as in `apply`.
        again: computes the result.
        found: what is known of the tensor.
    """
    result, extremes = found.result, found.extremes if x.is_cpu else None
    if extremes is None and p.numbers is not None and x.numel():
        extremes = extremes_of(x)
    ctx.affine, ctx.factors, ctx.again, ctx.extremes = p, factors, again, extremes
    ctx.computed = None if result is None else result.computed
    ctx.learns = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
    ctx.unclipped = extremes is not None and none_clipped(extremes, p, x.dtype)
    stays = ctx.learns or is_kept_anyway(x)
    ctx.input = function_of(x) if ctx.learns and result is not None else None
    ctx.clipped = NOTHING if ctx.unclipped and not ctx.learns else None
    if stays and ctx.input is None and ctx.clipped is None:
        ctx.save_for_backward(x)
    elif not stays and ctx.clipped is None:
        ctx.clipped, mask = clipped_by(x, p, extremes)
        ctx.save_for_backward(*() if mask is None else (mask,))
    if stays and result is not None:
        result.compute_from(ctx.input or Kept.of(x).unpack, again.plain)


def gradients(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the tensor and of both ends of the range, from what was kept."""
    p: Affine = ctx.affine
    # what was computed for the layers behind, which are done with it
    again = ctx.computed.pop() if ctx.computed else None
    if ctx.clipped is not None:
        return ctx.clipped.gradient(g, *ctx.saved_tensors), None, None
    if again is not None and not torch.is_grad_enabled():
        x, y = again
    else:
        x, y = ctx.saved_tensors[0] if ctx.input is None else ctx.input(), None
    if not ctx.learns:
        return kept(g, x, p), None, None
    factors = factors_for(x, p, ctx.factors(), ctx.extremes)
    if torch.is_grad_enabled():  # `create_graph`: every step must have a gradient itself
        dx = inside(g, x, p)
        y = ctx.again.differentiable(x)
        products = torch.mul(g, y).addcmul(dx, finite(x), value=-1.0)
        sums = products.sum_to_size(p.scale.shape), (g - dx).sum_to_size(p.scale.shape)
        return dx, *factors.gradients(*sums)
    y = ctx.again.plain(x) if y is None else y
    if p.numbers is None:
        dx, *totals = gradients_of_many(g, x, y, p, outside=factors.use_outside)
        return dx, *factors.gradients(*totals)
    if ctx.extremes is not None and any(math.isinf(end.item()) for end in ctx.extremes):
        x = finite(x)
    dx, *numbers = gradients_of_one(
        g, x, y, p, outside=factors.use_outside, unclipped=ctx.unclipped
    )
    return dx, *factors.gradients_of_one(*numbers)


class _Quantize(torch.autograd.Function):
    """`quantize` with gradients for the tensor and for the two ends of the range."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, second: Tensor, p: Affine, factors: Lazy
    ) -> Tensor:
        ctx.affine, ctx.factors = p, factors
        ctx.save_for_backward(x)
        return quantize(x, p)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        p: Affine = ctx.affine
        (x,) = ctx.saved_tensors
        kept = inside(g, x, p)
        dx = kept / p.scale
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return dx, None, None, None, None
        # as above: d scale is products / scale and d zero -scale * outside
        products = -(dx * finite(x)).sum_to_size(p.scale.shape)
        outside = -kept.sum_to_size(p.scale.shape) / p.scale
        return dx, *factors_for(x, p, ctx.factors()).gradients(products, outside), None, None


def apply(
    x: Tensor,
    first: Tensor,
    second: Tensor,
    p: Affine,
    factors: Lazy,
    extremes: Extremes | None = None,
) -> Tensor:
    """`quantize_dequantize` as one differentiable step.

    Args:
        x: float32 or float64, `[...]`.
        first: what the step is computed from, such as the lower end of the range, `[S]`.
        second: the other one, such as the upper end of the range, `[S]`.
        p: step and zero point.
        factors: gives the factors from sums over the tensor to gradients of `first` and `second`.
        extremes: smallest and largest element of each range, `[S]` each, if they are known.
    """
    result = Result() if hooks_are_free() else None
    run: Any = _QuantizeDequantize.apply
    y: Tensor = run(x, first, second, p, factors, Found(extremes, result))
    if result is not None:
        result.note(y)
    return y


def apply_quantize(x: Tensor, first: Tensor, second: Tensor, p: Affine, factors: Lazy) -> Tensor:
    """`quantize` as one differentiable step; arguments as in `apply`."""
    run: Any = _Quantize.apply
    return run(x, first, second, p, factors)  # type: ignore[no-any-return]
