"""Kernels of sums of products: exact 32-bit sums, then one multiplication in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.onnx.integer.kernels import saturating_gemm
from fxquant.onnx.integer.kernels.arithmetic import F32, Array, requantize, wrapped
from fxquant.onnx.integer.kernels.registry import KernelCall, kernel

# a product of bytes is below 2^16: float64 holds 2^37 of them exactly


@kernel("QLinearConv")
def _conv(c: KernelCall) -> Array:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = c.arrays[:8]
    bias = c.optional(8)
    sums = convolve(c, centred(x, x_zero), centred(w, per_channel(w_zero, w.ndim)))
    if c.saturates:
        sums = sums + _lost(c, saturating_gemm.lost_in_convolution, x, x_zero, w)
    column = (-1, *[1] * (x.ndim - 2))
    if bias is not None:
        sums = sums + bias.astype(np.float64).reshape(column)
    scale = (x_scale.reshape(()) * w_scale.reshape(-1)).astype(F32) / y_scale.reshape(())
    return requantize(wrapped(sums), scale.reshape(column), y_zero.reshape(()), y_zero.dtype)


def _lost(
    c: KernelCall, function: Callable[..., Array | float], x: Array, x_zero: Array, w: Array
) -> Array | float:
    """What saturation adds to a convolution, by the function for its kernel."""
    n = w.ndim - 2
    strides, dilations = c.ints("strides", [1] * n), c.ints("dilations", [1] * n)
    return function(
        x, w, int(x_zero.reshape(())), strides=strides, dilations=dilations,
        pads=padding(c, x.shape[2:], list(w.shape[2:]), strides, dilations),
        group=c.whole("group", 1),
    )  # fmt: skip


@kernel("ConvInteger")
def _conv_integer(c: KernelCall) -> Array:
    x, w = c.arrays[:2]
    x_zero, w_zero = (_zero(c, i) for i in (2, 3))
    sums = convolve(c, centred(x, x_zero.reshape(())), centred(w, per_channel(w_zero, w.ndim)))
    if c.saturates:
        sums = sums + _lost(c, saturating_gemm.lost_in_columns, x, x_zero, w)
    return wrapped(sums)


def _zero(c: KernelCall, index: int) -> Array:
    """A zero point that may be omitted."""
    given = c.optional(index)
    return np.zeros((), np.int32) if given is None else given


def per_channel(zero: Array, rank: int) -> Array:
    """Zero points of the first axis."""
    return zero.reshape(()) if zero.size == 1 else zero.reshape(-1, *[1] * (rank - 1))


def centred(q: Array, zero: Array) -> Array:
    """`q - z` in float64."""
    return q.astype(np.float64) - zero.astype(np.float64)


def convolve(c: KernelCall, x: Array, w: Array) -> Array:
    """A convolution with the attributes of ONNX, in float64: x [N, C, ...], w [M, C/g, ...]."""
    n = w.ndim - 2
    kernel_size = list(w.shape[2:])
    strides, dilations = c.ints("strides", [1] * n), c.ints("dilations", [1] * n)
    pads = padding(c, x.shape[2:], kernel_size, strides, dilations)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)])
    group = c.whole("group", 1)
    if group == x.shape[1] == w.shape[0] and group > 1:
        return _depthwise(padded, w, strides, dilations)
    function = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    result: Tensor = function(_tensor(padded), _tensor(w), None, strides, 0, dilations, group)
    return result.numpy()


def _depthwise(x: Array, w: Array, strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """One filter a channel, as a sum over the places of the filter."""
    spans = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(x.shape[2:], w.shape[2:], strides, dilations, strict=True)
    ]
    total = np.zeros((x.shape[0], x.shape[1], *spans), np.float64)
    for place in np.ndindex(*w.shape[2:]):
        window = tuple(
            slice(p * d, p * d + (m - 1) * s + 1, s)
            for p, d, m, s in zip(place, dilations, spans, strides, strict=True)
        )
        weight = w[(slice(None), 0, *place)].reshape(-1, *[1] * len(spans))
        total += x[(slice(None), slice(None), *window)] * weight
    return total


def padding(
    c: KernelCall, sizes: Sequence[int], kernel_size: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:  # fmt: skip
    """Explicit padding: begins, then ends."""
    n, mode = len(kernel_size), c.text("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return c.ints("pads", [0] * 2 * n)
    if mode == "VALID":
        return [0] * 2 * n
    begins, ends = [], []
    for size, k, s, d in zip(sizes, kernel_size, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return [*begins, *ends]


def _tensor(x: Array) -> Tensor:
    # arrays of the file are read-only, which torch warns of
    return torch.from_numpy(np.require(x, requirements=("C", "W")))


def _sums(c: KernelCall, a: Array, b: Array, zeros: tuple[Array, Array]) -> Array:
    """Sums of products of integers as the CPU adds them, in float64.

    Args:
        c: the node.
        a: [..., M, K] raw integers.
        b: [..., K, N] raw integers.
        zeros: their zero points, broadcast against them.
    """
    exact = multiply(centred(a, zeros[0]), centred(b, zeros[1]))
    return exact + saturating_gemm.lost(a, b) if c.saturates else exact


def multiply(a: Array, b: Array) -> Array:
    """A matrix product in float64 with numpy's rules for shapes."""
    return np.asarray(torch.matmul(_tensor(a), _tensor(b)).numpy())


def _columns(x: Array, rank: int) -> Array:
    """A value per tensor, or per column of the second operand: [N] or [..., 1, N]."""
    if x.size == 1:
        return x.reshape(())
    return x if x.ndim > 1 else x.reshape(*[1] * (rank - 1), -1)


@kernel("QLinearMatMul")
def _matmul(c: KernelCall) -> Array:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = c.arrays[:8]
    sums = _sums(c, a, b, (a_zero.reshape(()), _columns(b_zero, b.ndim)))
    scale = (a_scale.reshape(()) * _columns(b_scale, b.ndim)).astype(F32) / y_scale.reshape(())
    return requantize(wrapped(sums), scale.astype(F32), y_zero.reshape(()), y_zero.dtype)


@kernel("MatMulIntegerToFloat")
def _matmul_to_float(c: KernelCall) -> Array:
    a, b, a_scale, b_scale = c.arrays[:4]
    a_zero, b_zero, bias = (c.optional(i) for i in (4, 5, 6))
    return scaled_product(c, (a, a_scale, a_zero), (b, b_scale, b_zero), bias)


Grid = tuple[Array, Array, "Array | None"]


def scaled_product(c: KernelCall, first: Grid, second: Grid, bias: Array | None) -> Array:
    """A matrix product of integers in float32.

    Args:
        c: the node.
        first: integers [..., M, K], scale and zero point, one of each.
        second: integers [..., K, N], scale and zero point, one or one for each column.
        bias: [N].
    """
    (a, a_scale, a_zero), (b, b_scale, b_zero) = first, second
    a_zero = np.zeros((), a.dtype) if a_zero is None else a_zero
    b_zero = np.zeros((), b.dtype) if b_zero is None else b_zero
    sums = _sums(c, a, b, (a_zero.reshape(()), _columns(b_zero, b.ndim)))
    scale = (a_scale.reshape(()) * _columns(b_scale, b.ndim)).astype(F32)
    y = wrapped(sums).astype(F32) * scale
    return y if bias is None else y + bias


@kernel("MatMulInteger")
def _matmul_integer(c: KernelCall) -> Array:
    a, b = c.arrays[:2]
    a_zero, b_zero = (_zero(c, i) for i in (2, 3))
    a_zero = a_zero.reshape(()) if a_zero.size == 1 else a_zero.reshape(-1, 1)
    return wrapped(_sums(c, a, b, (a_zero, _columns(b_zero, b.ndim))))


@kernel("QGemm")
def _gemm(c: KernelCall) -> Array:
    a, a_scale, a_zero, b, b_scale, b_zero = c.arrays[:6]
    bias, y_scale, y_zero = (c.optional(i) for i in (6, 7, 8))
    a = a.T if c.whole("transA", 0) else a
    b = b.T if c.whole("transB", 0) else b
    sums = _sums(c, a, b, (a_zero.reshape(()), _columns(b_zero, 2)))
    if bias is not None:
        sums = sums + bias.astype(np.float64)
    scale = (F32(c.number("alpha", 1.0)) * a_scale.reshape(())).astype(F32)
    scale = (scale * (b_scale.reshape(()) if b_scale.size == 1 else b_scale)).astype(F32)
    if y_scale is None or y_zero is None:
        return wrapped(sums).astype(F32) * scale
    scale = (scale / y_scale.reshape(())).astype(F32)
    return requantize(wrapped(sums), scale, y_zero.reshape(()), y_zero.dtype)


def as_tensor(x: Any) -> Tensor:
    """An array as a torch tensor over the same memory."""
    return _tensor(np.asarray(x))
