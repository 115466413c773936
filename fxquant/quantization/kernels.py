"""Quantization of tensors: `clamp(round(x / scale) + zero_point, qmin, qmax)` and back, in float32.

The arithmetic is that of ONNX QuantizeLinear and DequantizeLinear, bit for bit: a true division
(a product with the reciprocal differs in a few values of a million), ties to even, saturation.

Why in place: a chain of in-place steps over one fresh tensor runs at three times the cost of a copy
and is vectorized by PyTorch for every layout; the built-in fake-quantize operators take fifty times
the cost of a copy and multiply by the reciprocal. Where the range is fixed, the gradient needs to
know which elements are clipped, a bit each (see `clipping.py`). Where it is learned, the gradient
needs input and output, and nothing else:

    dx       = g where x rounds to a value of the grid, both ends included, 0 where it is clipped
                                                            (one `hardtanh_backward`)
    products = sum g * y - sum dx * x                        d scale = products / scale
    outside  = sum g - sum dx                                d zero  = -scale * outside

which is the gradient of the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432) with
learned steps (Esser et al. 2020, arXiv:1902.08153, eq. 3), summed up before it is multiplied out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxquant.quantization.clipping import Clipped, is_kept_anyway, outside_of, where
from fxquant.quantization.pieces import in_one, pieces
from fxquant.quantization.range_to_qparams import Factors

hardtanh_backward: Callable[[Tensor, Tensor, float, float], Tensor] = (
    torch.ops.aten.hardtanh_backward.default
)
hardtanh_backward_out: Callable[..., Tensor] = torch.ops.aten.hardtanh_backward.grad_input
_ZERO = torch.zeros(())

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
    if in_one(x):
        return _rounded(torch.div(x, p.scale), p, p.scale, p.zero_point)
    y = torch.empty_like(x)
    for (part, out), (scale, zero) in pieces((x, y), (p.scale, p.zero_point)):
        _rounded(torch.div(part, scale, out=out), p, scale, zero)
    return y


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
        ctx: Any, x: Tensor, first: Tensor, second: Tensor, p: Affine, factors: Lazy
    ) -> Tensor:
        y = quantize_dequantize(x, p)
        ctx.affine = p
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            ctx.factors = factors
            ctx.save_for_backward(x, y)
        elif ctx.needs_input_grad[0]:
            ctx.clipped = None
            if is_kept_anyway(x):
                ctx.save_for_backward(x)
            else:
                ctx.clipped, kept = clipped_by(x, p)
                ctx.save_for_backward(*() if kept is None else (kept,))
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        p: Affine = ctx.affine
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            if ctx.clipped is None:
                dx = _kept(g, ctx.saved_tensors[0], p)
            else:
                dx = ctx.clipped.gradient(g, *ctx.saved_tensors)
            return dx, None, None, None, None
        x, y = ctx.saved_tensors
        factors = _factors_for(x, p, ctx.factors())
        if torch.is_grad_enabled():  # `create_graph`: every step must have a gradient itself
            dx = inside(g, x, p)
            products = torch.mul(g, y).addcmul(dx, x, value=-1.0)
            sums = products.sum_to_size(p.scale.shape), (g - dx).sum_to_size(p.scale.shape)
            return dx, *factors.gradients(*sums), None, None
        if p.numbers is None:
            dx, *totals = _gradients(g, x, y, p, outside=factors.use_outside)
            return dx, *factors.gradients(*totals), None, None
        dx, *numbers = _gradients_of_one(g, x, y, p, outside=factors.use_outside)
        return dx, *factors.gradients_of_one(*numbers), None, None


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
        products = -(dx * x).sum_to_size(p.scale.shape)
        outside = -kept.sum_to_size(p.scale.shape) / p.scale
        return dx, *_factors_for(x, p, ctx.factors()).gradients(products, outside), None, None


def _factors_for(x: Tensor, p: Affine, factors: Factors) -> Factors:
    """The factors, which depend on the tensor where one end of the range lies at zero."""
    if factors.at_zero is None:
        return factors
    x, scale = x.detach(), p.scale
    if scale.numel() == 1:
        return factors.keep_zeros(*torch.aminmax(x), scale)
    shape = (1,) * (x.dim() - scale.dim()) + tuple(scale.shape)
    dims = [d for d, n in enumerate(shape) if n == 1]
    seen = (x.amin(dims), x.amax(dims)) if dims else (x, x)
    return factors.keep_zeros(*seen, scale)


def inside(g: Tensor, x: Tensor, p: Affine) -> Tensor:
    """The gradient where `x` rounds to a value of the grid, zero where it is clipped."""
    if p.numbers is not None:
        return hardtanh_backward(g, x, *_edges(p, p.numbers, x.dtype))
    integers = torch.div(x, p.scale).round_()
    if not p.centred:
        integers.add_(p.zero_point)
    return hardtanh_backward(g, integers, p.qmin - 0.5, p.qmax + 0.5)


def clipped_by(x: Tensor, p: Affine) -> tuple[Clipped, Tensor | None]:
    """Where `inside` stops the gradient."""
    if p.numbers is not None and x.is_cpu:
        return outside_of(x, *_edges(p, p.numbers, x.dtype))
    integers = torch.div(x, p.scale).round_().add_(p.zero_point)
    return where((integers < p.qmin).logical_or_(integers > p.qmax))


def _edges(p: Affine, numbers: tuple[float, float], dtype: torch.dtype) -> tuple[float, float]:
    """The nearest values below and above the grid that are clipped."""
    scale, zero = numbers
    kind = np.float64 if dtype is torch.float64 else np.float32
    return -_beyond(zero - p.qmin, scale, kind), _beyond(p.qmax - zero, scale, kind)


@functools.lru_cache(maxsize=4096)
def _beyond(last: float, scale: float, kind: type[np.floating[Any]]) -> float:
    """The smallest value that is rounded to more than `last` steps.

    Half a step away there is a tie, and the quotient is rounded before that: this is exact.
    """
    if not 0.0 < scale < np.inf:
        return (last + 0.5) * scale
    with np.errstate(over="ignore"):
        step, end, x = kind(scale), kind(last), kind((last + 0.5) * scale)
        while np.rint(x / step) > end:
            x = np.nextafter(x, kind(-np.inf))
        while np.rint(x / step) <= end:
            x = np.nextafter(x, kind(np.inf))
    return float(x)


def _inside_into(out: Tensor, g: Tensor, x: Tensor, p: Affine, scale: Tensor, zero: Tensor) -> None:
    """As `inside` for many steps, of a piece, without another tensor."""
    torch.div(x, scale, out=out).round_()
    if not p.centred:
        out.add_(zero)
    hardtanh_backward_out(g, out, p.qmin - 0.5, p.qmax + 0.5, grad_input=out)


def _kept(g: Tensor, x: Tensor, p: Affine) -> Tensor:
    """As `inside`, in pieces where that is faster."""
    if p.numbers is not None or torch.is_grad_enabled() or in_one(x):
        return inside(g, x, p)
    dx = torch.empty_like(x)
    for (out, part, grad), steps in pieces((dx, x, g), (p.scale, p.zero_point)):
        _inside_into(out, grad, part, p, *steps)
    return dx


def _gradients(
    g: Tensor, x: Tensor, y: Tensor, p: Affine, *, outside: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of `x`, and the sums `products` and `outside` in the shape of the step."""
    dx = torch.empty_like(x)
    sums = torch.zeros_like(p.scale), torch.zeros_like(p.scale)
    tensors, values = (dx, x, g, y), (p.scale, p.zero_point, *sums)
    cut = [(tensors, values)] if in_one(x) else pieces(tensors, values)
    for (out, part, grad, result), (scale, zero, products, beyond) in cut:
        _inside_into(out, grad, part, p, scale, zero)
        mixed = torch.mul(grad, result).addcmul_(out, part, value=-1.0)
        products += mixed.sum_to_size(scale.shape)
        if outside:
            beyond += grad.sum_to_size(scale.shape) - out.sum_to_size(scale.shape)
    return dx, *sums


def _gradients_of_one(
    g: Tensor, x: Tensor, y: Tensor, p: Affine, *, outside: bool
) -> tuple[Tensor, float, float]:
    """As `_gradients` where there is one step, known as a number."""
    edges = _edges(p, p.numbers, x.dtype)  # type: ignore[arg-type]
    if in_one(x):
        dx = hardtanh_backward(g, x, *edges)
        return dx, *_sums(g, y, dx, x, outside=outside)
    dx = torch.empty_like(x)
    products = beyond = 0.0
    for (out, part, grad, result), _ in pieces((dx, x, g, y), ()):
        hardtanh_backward_out(grad, part, *edges, grad_input=out)
        sums = _sums(grad, result, out, part, outside=outside)
        products, beyond = products + sums[0], beyond + sums[1]
    return dx, products, beyond


def _sums(g: Tensor, y: Tensor, dx: Tensor, x: Tensor, *, outside: bool) -> tuple[float, float]:
    """`products` and `outside` as numbers."""
    beyond = g.sum().item() - dx.sum().item() if outside else 0.0
    if not (x.is_contiguous() and g.is_contiguous()):
        return (g * y).sum().item() - (dx * x).sum().item(), beyond
    if x.dim() != 1:
        g, y, dx, x = g.view(-1), y.view(-1), dx.view(-1), x.view(-1)
    return torch.dot(g, y).item() - torch.dot(dx, x).item(), beyond


def apply(x: Tensor, first: Tensor, second: Tensor, p: Affine, factors: Lazy) -> Tensor:
    """`quantize_dequantize` as one differentiable step.

    Args:
        x: float32 or float64, `[...]`.
        first: what the step is computed from, such as the lower end of the range, `[S]`.
        second: the other one, such as the upper end of the range, `[S]`.
        p: step and zero point.
        factors: gives the factors from sums over the tensor to gradients of `first` and `second`.
    """
    run: Any = _QuantizeDequantize.apply
    return run(x, first, second, p, factors)  # type: ignore[no-any-return]


def apply_quantize(x: Tensor, first: Tensor, second: Tensor, p: Affine, factors: Lazy) -> Tensor:
    """`quantize` as one differentiable step; arguments as in `apply`."""
    run: Any = _Quantize.apply
    return run(x, first, second, p, factors)  # type: ignore[no-any-return]
