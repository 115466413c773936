"""Quantization of tensors: `clamp(round(x / scale) + zero_point, qmin, qmax)` and back, in float32.

The arithmetic is that of ONNX QuantizeLinear and DequantizeLinear, bit for bit: a true division
(a product with the reciprocal differs in a few values of a million), ties to even, saturation.

Why in place: a chain of in-place steps over one fresh tensor runs at three times the cost of a copy
and is vectorized by PyTorch for every layout; the built-in fake-quantize operators take fifty times
the cost of a copy and multiply by the reciprocal. The gradient needs neither masks nor more saved
tensors than input and output:

    dx       = g inside the grid, 0 outside                 (one `hardtanh_backward`)
    products = sum g * y - sum dx * x                        d scale = products / scale
    outside  = sum g - sum dx                                d zero  = -scale * outside

which is the gradient of the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432) with
learned steps (Esser et al. 2020, arXiv:1902.08153, eq. 3), summed up before it is multiplied out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.quantization.grid import Factors
from fxquant.quantization.layout import flat

hardtanh_backward: Callable[[Tensor, Tensor, float, float], Tensor] = (
    torch.ops.aten.hardtanh_backward.default
)
_ZERO = torch.zeros(())
# elements that a core keeps in its cache from one step of the chain to the next
_PART = 1 << 19

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
    if p.numbers is not None:
        y = torch.empty_like(x)
        if x.numel() <= _PART or x.stride() != y.stride():
            return _in_one_go(x, y, p, p.numbers)
        size = _PART * torch.get_num_threads()
        for part, out in zip(flat(x).split(size), flat(y).split(size), strict=True):
            _in_one_go(part, out, p, p.numbers)
        return y
    y = torch.div(x, p.scale).round_()
    # with a zero point of 0 as well: adding it turns -0.0 into 0.0
    y.add_(p.zero_point).clamp_(p.qmin, p.qmax)
    return (y if p.centred else y.sub_(p.zero_point)).mul_(p.scale)


def _in_one_go(x: Tensor, y: Tensor, p: Affine, numbers: tuple[float, float]) -> Tensor:
    scale, zero = numbers
    torch.div(x, p.scale, out=y)
    # the zero point goes into the bounds: the same integers in two passes less
    y.round_().clamp_(p.qmin - zero, p.qmax - zero)
    # 0 + y * scale: the runtime has no -0.0
    return torch.add(_ZERO, y, alpha=scale, out=y)


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
        else:
            ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        p: Affine = ctx.affine
        x, *more = ctx.saved_tensors
        dx = inside(g, x, p)
        if not more:
            return dx, None, None, None, None
        factors: Factors = ctx.factors()
        products = _products(g, more[0], dx, x, p)
        outside = _outside(g, dx, p) if factors.use_outside else None
        return dx, *factors.gradients(products, outside), None, None


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
        return dx, *ctx.factors().gradients(products, outside), None, None


def inside(g: Tensor, x: Tensor, p: Affine) -> Tensor:
    """The gradient where `x` rounds to a value of the grid, zero where it is clipped."""
    if p.numbers is not None:
        scale, zero = p.numbers
        low, high = (p.qmin - zero - 0.5) * scale, (p.qmax - zero + 0.5) * scale
        return hardtanh_backward(g, x, low, high)
    integers = torch.div(x, p.scale)
    if not p.centred:
        integers.add_(p.zero_point)
    return hardtanh_backward(g, integers, p.qmin - 0.5, p.qmax + 0.5)


def _products(g: Tensor, y: Tensor, dx: Tensor, x: Tensor, p: Affine) -> Tensor:
    """`sum g * y - sum dx * x`, in the shape of the step."""
    if p.scale.dim() or g.is_cuda:
        return torch.mul(g, y).addcmul_(dx, x, value=-1.0).sum_to_size(p.scale.shape)
    if not (x.is_contiguous() and g.is_contiguous() and g.dtype is x.dtype):
        return (g * y).sum() - (dx * x).sum()
    if x.dim() != 1:
        g, y, dx, x = g.view(-1), y.view(-1), dx.view(-1), x.view(-1)
    return torch.dot(g, y) - torch.dot(dx, x)


def _outside(g: Tensor, dx: Tensor, p: Affine) -> Tensor:
    """The sum of the gradients of clipped elements, in the shape of the step."""
    if p.scale.dim():
        return torch.sub(g, dx).sum_to_size(p.scale.shape)
    return g.sum() - dx.sum()


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
