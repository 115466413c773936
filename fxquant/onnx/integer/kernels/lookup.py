"""Kernels on bytes: a function of one or two of them is a table of 256 or 65 536 entries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fxquant.onnx.integer.kernels.arithmetic import (
    F32,
    Array,
    byte_values,
    dequantize,
    look_up,
    quantize,
    round_with_zero,
    saturate,
)
from fxquant.onnx.integer.kernels.float_functions import logistic
from fxquant.onnx.integer.kernels.gemm import padding
from fxquant.onnx.integer.kernels.lanes import Lanes
from fxquant.onnx.integer.kernels.registry import KernelCall, UnsupportedError, kernel

# --- two operands --------------------------------------------------------------------------------


@kernel("QLinearAdd")
def _add(c: KernelCall) -> Array:
    a, b = _Operand(c, 0), _Operand(c, 3)
    scale, zero = c.array(6).reshape(()), c.array(7).reshape(())
    if _first_is_single(a.values.shape, b.values.shape):  # the kernel wants it second
        a, b = b, a
    return _pairs(a, b, lambda x, y: _sum(x, y, (a, b), (scale, zero), c.lanes))


@kernel("QLinearMul")
def _multiply(c: KernelCall) -> Array:
    a, b = _Operand(c, 0), _Operand(c, 3)
    scale, zero = c.array(6).reshape(()), c.array(7).reshape(())
    ratio = ((a.scale * b.scale).astype(F32) / scale).astype(F32)

    def product(x: Array, y: Array) -> Array:
        exact = (x - a.zero) * (y - b.zero)  # 17 bits: float32 holds them
        moved = (exact * ratio).astype(F32) + zero.astype(F32)
        return round_with_zero(moved.astype(F32), zero.dtype)

    return _pairs(a, b, product)


class _Operand:
    """Bytes with their grid, zero point and values in float32."""

    def __init__(self, c: KernelCall, first: int) -> None:
        self.values = c.array(first)
        self.scale: Array = c.array(first + 1).reshape(())
        self.zero: Array = c.array(first + 2).reshape(()).astype(F32)


def _sum(
    x: Array, y: Array, operands: tuple[_Operand, _Operand], grid: tuple[Array, Array],
    lanes: Lanes,
) -> Array:  # fmt: skip
    """`a·ra + (b·rb + base)` with the zero point inside of `base`, fused where the CPU can.

    Args:
        x: all bytes of the first operand, [256, 1].
        y: all bytes of the second, [1, 256].
        operands: both.
        grid: scale and zero point of the sum.
        lanes: of the CPU.
    """
    (a, b), (scale, zero), add = operands, grid, lanes.multiply_add
    ra, rb = (a.scale / scale).astype(F32), (b.scale / scale).astype(F32)
    base = zero.astype(F32) - add(ra, a.zero, (rb * b.zero).astype(F32))
    return round_with_zero(add(x, ra, add(y, rb, base)), zero.dtype)


def _first_is_single(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether the first operand is one value along the innermost axis where they differ."""
    rank = max(len(a), len(b))
    left, right = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    inner = [(x, y) for x, y in zip(left, right, strict=True) if (x, y) != (1, 1)]
    return bool(inner) and inner[-1][0] == 1


def _pairs(a: _Operand, b: _Operand, function: Callable[[Array, Array], Array]) -> Array:
    """A function of two bytes, looked up for every pair."""
    x = byte_values(a.values.dtype).astype(F32).reshape(-1, 1)
    y = byte_values(b.values.dtype).astype(F32).reshape(1, -1)
    table = function(x, y).reshape(-1)
    left = a.values.view(np.uint8).astype(np.uint16) << 8
    return np.asarray(table[left | b.values.view(np.uint8)])


# --- one operand ---------------------------------------------------------------------------------


def _table(c: KernelCall, function: Callable[[Array], Array]) -> Array:
    """Table of a function of the real value between two grids."""
    x, x_scale, x_zero, y_scale, y_zero = (c.array(i) for i in range(5))
    real = dequantize(byte_values(x.dtype), x_scale.reshape(()), x_zero.reshape(()))
    return quantize(function(real), y_scale.reshape(()), y_zero.reshape(()), y_zero.dtype)


@kernel("QLinearLeakyRelu")
def _leaky_relu(c: KernelCall) -> Array:
    slope = F32(c.number("alpha", 0.01))
    return look_up(_table(c, lambda x: np.where(x >= 0, x, (x * slope).astype(F32))), c.array(0))


@kernel("QLinearSigmoid")
def _sigmoid(c: KernelCall) -> Array:
    return look_up(_table(c, lambda x: logistic(x, c.lanes)), c.array(0))


def _moved_to(x: Array, scale: Array, zero: Array, y_scale: Array, y_zero: Array) -> Array:
    """Bytes on another grid; on an equal one they stay."""
    if scale.item() == y_scale.item() and zero.item() == y_zero.item():
        return x
    real = dequantize(byte_values(x.dtype), scale.reshape(()), zero.reshape(()))
    return look_up(quantize(real, y_scale.reshape(()), y_zero.reshape(()), y_zero.dtype), x)


@kernel("QLinearConcat")
def _concat(c: KernelCall) -> Array:
    grid = c.array(0), c.array(1)
    parts = [
        _moved_to(c.array(i), c.array(i + 1), c.array(i + 2), *grid)
        for i in range(2, len(c.operands), 3)
    ]
    return np.concatenate(parts, axis=c.whole("axis", 0))


@kernel("QLinearWhere")
def _where(c: KernelCall) -> Array:
    grid = c.array(7), c.array(8)
    chosen = _moved_to(c.array(1), c.array(2), c.array(3), *grid)
    other = _moved_to(c.array(4), c.array(5), c.array(6), *grid)
    return np.where(c.array(0), chosen, other)


# --- many values of one tensor -------------------------------------------------------------------


@kernel("QLinearGlobalAveragePool")
def _global_average(c: KernelCall) -> Array:
    x, x_scale, x_zero, y_scale, y_zero = (c.array(i) for i in range(5))
    axes = tuple(range(1, x.ndim - 1)) if c.whole("channels_last", 0) else tuple(range(2, x.ndim))
    count = int(np.prod([x.shape[a] for a in axes], dtype=np.int64))
    sums = x.sum(axis=axes, dtype=np.int64, keepdims=True) - count * int(x_zero.item())
    ratio = x_scale.reshape(()) / (y_scale.reshape(()) * F32(count)).astype(F32)
    rounded = np.rint((sums.astype(F32) * ratio.astype(F32)).astype(F32))
    return saturate(rounded, y_zero.reshape(()), y_zero.dtype)


@kernel("QLinearAveragePool")
def _average(c: KernelCall) -> Array:
    """The mean in float32, added up in the order of the window; zero point before rounding."""
    x, x_scale, x_zero, y_scale, y_zero = (c.array(i) for i in range(5))
    if c.whole("channels_last", 0) or any(d != 1 for d in c.ints("dilations", [])):
        msg = "this layout has no kernel here"
        raise UnsupportedError(msg)
    real = dequantize(x, x_scale.reshape(()), x_zero.reshape(()))
    mean = average_pool(c, real)
    moved = (mean / y_scale.reshape(())).astype(F32) + y_zero.reshape(()).astype(F32)
    return round_with_zero(moved.astype(F32), y_zero.dtype)


def average_pool(c: KernelCall, x: Array) -> Array:
    """Means of windows of float32 values, each summed one after the other."""
    kernel_size = c.ints("kernel_shape", [])
    n = len(kernel_size)
    strides = c.ints("strides", [1] * n)
    pads = padding(c, x.shape[2:], kernel_size, strides, [1] * n)
    spans = pooled_sizes(c, x.shape[2:], kernel_size, strides, pads)
    starts = [np.arange(m) * s - p for m, s, p in zip(spans, strides, pads[:n], strict=True)]
    reach = [
        max(int(a[-1]) + k - size, 0) if len(a) else 0
        for a, k, size in zip(starts, kernel_size, x.shape[2:], strict=True)
    ]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:n], reach, strict=True)])
    total = np.zeros((*x.shape[:2], *spans), F32)
    for place in np.ndindex(*kernel_size):
        window = tuple(
            slice(p, p + (m - 1) * s + 1, s) for p, m, s in zip(place, spans, strides, strict=True)
        )
        total += padded[(slice(None), slice(None), *window)]
    return (total / _counts(c, x.shape[2:], kernel_size, starts)).astype(F32)


def _counts(
    c: KernelCall, sizes: tuple[int, ...], kernel_size: list[int], starts: list[Array]
) -> Array:
    """How many values each window counts."""
    if c.whole("count_include_pad", 0):
        return np.array(int(np.prod(kernel_size)), F32)
    counts = np.ones((1,) * len(sizes), np.int64)
    for axis, (size, k, start) in enumerate(zip(sizes, kernel_size, starts, strict=True)):
        seen = np.minimum(start + k, size) - np.maximum(start, 0)
        counts = counts * seen.reshape([-1 if a == axis else 1 for a in range(len(sizes))])
    return counts.astype(F32)


def pooled_sizes(
    c: KernelCall, sizes: tuple[int, ...], kernel_size: list[int], strides: list[int],
    pads: list[int],
) -> list[int]:  # fmt: skip
    """Sizes of the result of a pool."""
    n, up = len(kernel_size), bool(c.whole("ceil_mode", 0))
    dilations = c.ints("dilations", [1] * n)
    found = []
    for i in range(n):
        room = sizes[i] + pads[i] + pads[n + i] - dilations[i] * (kernel_size[i] - 1) - 1
        count = (-(-room // strides[i]) if up else room // strides[i]) + 1
        if up and (count - 1) * strides[i] >= sizes[i] + pads[i]:
            count -= 1  # a window that begins in the padding behind the input does not count
        found.append(count)
    return found


@kernel("QLinearSoftmax")
def _softmax(c: KernelCall) -> Array:
    """Exponentials from a table whose largest entry leaves room for their sum."""
    x, x_scale, _, y_scale, y_zero = (c.array(i) for i in range(5))
    newer = c.whole("opset", 13) >= 13
    axis = c.whole("axis", -1 if newer else 1) % x.ndim
    moved = np.moveaxis(x, axis, -1) if newer else x
    rows = moved.reshape(-1, x.shape[axis] if newer else int(np.prod(x.shape[axis:])))
    table = _exponentials(float(x_scale.item()), rows.shape[1])
    index = rows.astype(np.int64) - rows.max(axis=1, keepdims=True).astype(np.int64) + 255
    parts = table[index]
    total = np.zeros((len(rows), 1), F32)
    for column in range(rows.shape[1]):
        total[:, 0] += parts[:, column]
    steps = F32(np.floor(F32(1.0) / y_scale.reshape(())))
    y = np.rint((parts * steps).astype(F32) / total).astype(np.int64) + int(y_zero.item())
    made = np.minimum(y, 255).astype(np.uint8).view(x.dtype).reshape(moved.shape)
    return np.moveaxis(made, -1, axis) if newer else made


def _exponentials(scale: float, count: int) -> Array:
    most = float(np.finfo(F32).max)
    room = max(0.0, float(np.log(F32(most / count))) - 5) / scale
    places = np.arange(256, dtype=np.float64) - 255 + room
    return np.exp(places * scale).astype(F32)
