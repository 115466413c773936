"""The same arithmetic for compilers: primitives to compile, one operator to export.

A compiler fuses primitives into one loop, so under `torch.compile` the steps are written out of
place and differentiate by themselves. An exporter must keep the quantization whole, so while
`torch.export` runs it sees the operator `fxquant::quantize_dequantize`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxquant.quantization import kernels
from fxquant.quantization.gradients.poles import STEP
from fxquant.quantization.surrogate import finite

_library = torch.library.Library("fxquant", "DEF")
_ARGUMENTS = "(Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax) -> Tensor"
for _name in ("quantize", "quantize_dequantize"):
    _library.define(_name + _ARGUMENTS)


# A program that was exported is run, not trained: its quantizers have no gradient, where rounding
# would give one of zero.
@torch.no_grad()
def _run(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    return kernels.quantize_dequantize(x, kernels.affine(scale, zero_point, qmin, qmax))


@torch.no_grad()
def _run_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    return kernels.quantize(x, kernels.affine(scale, zero_point, qmin, qmax))


def _shape(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    return torch.empty_like(x)


def _copy(x: Tensor) -> Tensor:
    return x.clone()


_library.define("snapshot(Tensor x) -> Tensor")
_library.impl("snapshot", _copy, "CompositeExplicitAutograd")
torch.library.register_fake("fxquant::snapshot", torch.empty_like, lib=_library)
_library.impl("quantize_dequantize", _run, "CompositeExplicitAutograd")
_library.impl("quantize", _run_quantize, "CompositeExplicitAutograd")
torch.library.register_fake("fxquant::quantize_dequantize", _shape, lib=_library)
torch.library.register_fake("fxquant::quantize", _shape, lib=_library)


class _Round(torch.autograd.Function):
    """Rounding, ties to even, whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def straight_through_round(x: Tensor) -> Tensor:
    """`round(x)` with the gradient of `x`."""
    return _Round.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def clipped(integers: Tensor, qmin: int, qmax: int) -> Tensor:
    """`clamp(integers, qmin, qmax)` with the gradient of the identity on the grid, ends included.

    The outermost values of the grid are values like all others, and an element that is rounded to
    one of them is not clipped. `torch.clamp` passes the gradient at its ends in some releases and
    in others it does not, so this must not lean on it.
    """
    return torch.where(integers < qmin, qmin, torch.where(integers > qmax, qmax, integers))


def computed_once(values: Tensor) -> Tensor:
    """The values, written to memory before the loop over the tensor that reads them.

    A compiler fuses what a step is computed from into that loop and does it again for every
    element; a view by strides it must compute first.
    """
    if torch.compiler.is_exporting():
        return values
    return values.as_strided(values.shape, values.stride())


def snapshot(values: Tensor) -> Tensor:
    """The values of a buffer that is written to later in the forward pass, as they are now.

    The compiler saves inputs of a graph for the backward pass and computes from them again what it
    can, also from an input that was written to in between: it would see the new values. What an
    operator that it does not know returns it saves.
    """
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return values
    return torch.ops.fxquant.snapshot.default(values)  # type: ignore[no-any-return]


def on_grid(x: Tensor, step: Tensor) -> Tensor:
    """Note on a tensor that it lies on a grid of one step: a compiler knows no subclasses."""
    if step.numel() == 1 and not torch.compiler.is_exporting():
        setattr(x, STEP, step.detach().reshape(()))
    return x


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Integers of the grid as floats, in a form that a compiler can take apart."""
    if torch.compiler.is_exporting():
        op = torch.ops.fxquant.quantize.default
        return op(x, scale, zero_point, qmin, qmax)  # type: ignore[no-any-return]
    return clipped(straight_through_round(finite(x) / scale) + zero_point, qmin, qmax)


def quantize_dequantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> Tensor:
    """The nearest values of the grid, in a form that a compiler can take apart."""
    if torch.compiler.is_exporting():
        op = torch.ops.fxquant.quantize_dequantize.default
        return op(x, scale, zero_point, qmin, qmax)  # type: ignore[no-any-return]
    return _QuantizeDequantize.apply(x, scale, zero_point, qmin, qmax)  # type: ignore[no-any-return, no-untyped-call]


class _QuantizeDequantize(torch.autograd.Function):
    """The values of the grid with the gradient of `surrogate`, all of it computed from the tensor.

    Left to differentiate the primitives by itself, a compiler keeps a quotient, integers and masks
    of every tensor for the backward pass; the tensor itself is kept anyway.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.ends = qmin, qmax
        integers = torch.round(x / scale) + zero_point
        return (clipped(integers, qmin, qmax) - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        qmin, qmax = ctx.ends
        integers = straight_through_round(x / scale) + zero_point  # for a second derivative
        inside = (integers >= qmin) & (integers <= qmax)
        dx = torch.where(inside, g, 0.0)
        y = (clipped(integers, qmin, qmax) - zero_point) * scale
        # an element at infinity is clipped, and zero times infinity is no number
        products = (g * torch.where(inside, y - x, y)).sum_to_size(scale.shape)
        outside = torch.where(inside, 0.0, g).sum_to_size(zero_point.shape)
        return dx, products / scale, -scale * outside, None, None
