"""Quantization as functions of tensor, scale and offset; all three get gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.quantization import kernels, traced
from fxquant.quantization.affine.options import Options, grid_of
from fxquant.quantization.layout import Layout
from fxquant.quantization.quantizer_base import float32
from fxquant.quantization.range_to_qparams import Factors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.quantization.range_to_qparams import IntegerRange


def quantize(
    x: Tensor,
    scale: Tensor | float,
    offset: Tensor | float,
    bitwidth: int | None = None,
    signed: bool | int | None = None,
    block_size: Sequence[int] | None = None,
    *,
    num_steps: int | None = None,
    qmin: int | None = None,
    qmax: int | None = None,
) -> Tensor:
    """Integers `clamp(round(x / scale) - offset, qmin, qmax)`, stored as floats.

    Args:
        x: the tensor, `[...]`.
        scale: step of the grid, float32 `[S]`, laid against the tensor from the right; or a number.
        offset: minus the zero point, `[S]` or a number.
        bitwidth: bits of the grid; or two integers in its place, `qmin` and `qmax`.
        signed: True for integers from `-2 ** (bitwidth - 1)`.
        block_size: elements per block along each axis of `scale`, or None.
        num_steps: steps of the grid, instead of `bitwidth`.
        qmin: smallest integer, instead of `bitwidth`.
        qmax: largest integer, instead of `bitwidth`.

    Returns:
        The integers, in the precision of `x` but at least float32.

    Example:
        >>> quantize(torch.tensor([0.3, 9.0]), torch.tensor(0.1), torch.tensor(0.0), bitwidth=4)
        tensor([ 3., 15.])
    """
    grid = _grid(bitwidth, signed, num_steps, qmin, qmax)
    return _run(x, scale, offset, grid, block_size, integers=True)


def quantize_dequantize(
    x: Tensor,
    scale: Tensor | float,
    offset: Tensor | float,
    bitwidth: int | None = None,
    signed: bool | int | None = None,
    block_size: Sequence[int] | None = None,
    *,
    num_steps: int | None = None,
    qmin: int | None = None,
    qmax: int | None = None,
) -> Tensor:
    """The nearest values of the grid, in the precision of `x`; arguments as in `quantize`.

    Example:
        >>> zero = torch.tensor(0.0)
        >>> quantize_dequantize(torch.tensor([0.34, 9.0]), torch.tensor(0.25), zero, bitwidth=4)
        tensor([0.2500, 3.7500])
    """
    grid = _grid(bitwidth, signed, num_steps, qmin, qmax)
    return _run(x, scale, offset, grid, block_size, integers=False).to(x.dtype)


def dequantize(
    q: Tensor,
    scale: Tensor | float,
    offset: Tensor | float,
    block_size: Sequence[int] | None = None,
) -> Tensor:
    """Real values `(q + offset) * scale`; arguments as in `quantize`.

    Example:
        >>> dequantize(torch.tensor([3.0]), torch.tensor(0.5), torch.tensor(-1.0))
        tensor([1.])
    """
    scale, offset = _numbers(scale, q), _numbers(offset, q)
    layout = _layout(scale, block_size)
    y = layout.split(float32(q)) + layout.spread(offset)
    return (y * layout.spread(scale)).reshape(q.shape)


def _grid(
    bitwidth: int | None,
    signed: bool | int | None,
    steps: int | None,
    qmin: int | None,
    qmax: int | None,
) -> IntegerRange:
    if isinstance(signed, int) and not isinstance(signed, bool):  # qmin and qmax by position
        return grid_of(Options(qmin=bitwidth, qmax=signed))
    if steps is not None:
        qmin = -((steps + 1) // 2) if signed else 0
        return grid_of(Options(bitwidth, qmin=qmin, qmax=qmin + steps))
    return grid_of(Options(bitwidth, qmin=qmin, qmax=qmax, signed=signed))


def _numbers(given: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(given, Tensor):
        return given
    return torch.as_tensor(given, dtype=torch.float32, device=like.device)


def _layout(scale: Tensor, block_size: Sequence[int] | None) -> Layout:
    return Layout(tuple(scale.shape), None if block_size is None else tuple(block_size))


def _run(
    x: Tensor,
    scale: Tensor | float,
    offset: Tensor | float,
    grid: IntegerRange,
    block_size: Sequence[int] | None,
    *,
    integers: bool,
) -> Tensor:
    scale, offset = _numbers(scale, x), _numbers(offset, x)
    layout = _layout(scale, block_size)
    y = layout.split(float32(x))
    first, second = layout.spread(scale), layout.spread(offset).expand(layout.spread(scale).shape)
    if torch.compiler.is_compiling():
        step = traced.quantize if integers else traced.quantize_dequantize
        return step(y, first, -second, grid.qmin, grid.qmax).reshape(x.shape)
    single = layout.single and not integers
    p = kernels.affine(first.detach(), (0.0 - second).detach(), grid.qmin, grid.qmax, single=single)
    needed = y.requires_grad or first.requires_grad or second.requires_grad
    if torch.is_grad_enabled() and needed:
        run = kernels.apply_quantize if integers else kernels.apply
        return run(y, first, second, p, lambda: _factors(first.detach())).reshape(x.shape)
    forward = kernels.quantize if integers else kernels.quantize_dequantize
    return forward(y, p).reshape(x.shape)


def _factors(scale: Tensor) -> Factors:
    # gradients of scale and offset; offset = -zero point
    return Factors((1.0 / scale, torch.zeros_like(scale)), (None, scale))
