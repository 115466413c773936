"""Operators in float32 that add many values: their last bits depend on the order of the sums.

Softmax and layer norm add in the lanes of onnxruntime's kernels for the CPU and are equal bit for
bit, as pools and batch norm are. Products of matrices and convolutions add in torch's order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.onnx.integer import functions
from fxquant.onnx.integer.arithmetic import F32, Array, fma
from fxquant.onnx.integer.bytewise import average_pool, pooled_sizes
from fxquant.onnx.integer.call import KernelCall, UnsupportedError, kernel
from fxquant.onnx.integer.lanes import Lanes, folded, in_turn
from fxquant.onnx.integer.products import as_tensor, padding

_LANES = 8  # float32 numbers in a register of AVX: layer norm has no kernel for wider ones


def _tensors(c: KernelCall) -> list[Tensor]:
    return [as_tensor(x) for x in c.arrays]


@kernel("Conv")
def _conv(c: KernelCall) -> Array:
    x, w = c.array(0), c.array(1)
    bias, n = c.optional(2), w.ndim - 2
    strides, dilations = c.ints("strides", [1] * n), c.ints("dilations", [1] * n)
    pads = padding(c, x.shape[2:], list(w.shape[2:]), strides, dilations)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)])
    function = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
    given = None if bias is None else as_tensor(bias)
    group = c.whole("group", 1)
    y: Tensor = function(as_tensor(padded), as_tensor(w), given, strides, 0, dilations, group)
    return y.numpy()


@kernel("ConvTranspose")
def _conv_transpose(c: KernelCall) -> Array:
    x, w = c.array(0), c.array(1)
    bias, n = c.optional(2), w.ndim - 2
    if c.text("auto_pad", "NOTSET") != "NOTSET" or c.ints("output_shape", []):
        msg = "a given output shape has no kernel here"
        raise UnsupportedError(msg)
    strides, dilations = c.ints("strides", [1] * n), c.ints("dilations", [1] * n)
    pads, extra = c.ints("pads", [0] * 2 * n), c.ints("output_padding", [0] * n)
    if pads[:n] != pads[n:]:
        msg = "unequal padding has no kernel here"
        raise UnsupportedError(msg)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    given = None if bias is None else as_tensor(bias)
    y: Tensor = function(
        as_tensor(x), as_tensor(w), given, strides, pads[:n], extra, c.whole("group", 1), dilations
    )
    return y.numpy()


@kernel("MatMul")
def _matmul(c: KernelCall) -> Array:
    a, b = _tensors(c)
    return np.asarray(torch.matmul(a, b).numpy())


@kernel("Gemm")
def _gemm(c: KernelCall) -> Array:
    a, b, bias = c.array(0), c.array(1), c.optional(2)
    a = a.T if c.whole("transA", 0) else a
    b = b.T if c.whole("transB", 0) else b
    y: Array = torch.matmul(as_tensor(a), as_tensor(b)).numpy()
    alpha, beta = F32(c.number("alpha", 1.0)), F32(c.number("beta", 1.0))
    y = y if alpha == 1 else (y * alpha).astype(F32)
    if bias is None:
        return y
    return np.asarray(y + (bias if beta == 1 else (bias * beta).astype(F32)), F32)


@kernel("Einsum")
def _einsum(c: KernelCall) -> Array:
    y: Tensor = torch.einsum(c.text("equation", ""), *_tensors(c))
    return y.numpy()


@kernel("Softmax")
def _softmax(c: KernelCall) -> Array:
    return _by_rows(c, functions.softmax)


@kernel("LogSoftmax")
def _log_softmax(c: KernelCall) -> Array:
    return _by_rows(c, functions.log_softmax)


def _by_rows(c: KernelCall, function: Callable[[Array, Lanes], Array]) -> Array:
    """A function of rows along the axis; before opset 13, along it and all that follow."""
    x, axis = c.array(0), c.whole("axis", -1 if c.opset >= 13 else 1)
    if not x.size:
        return x
    if c.opset < 13:
        count = int(np.prod(x.shape[: axis % x.ndim], dtype=np.int64))
        return function(x.reshape(count, -1), c.lanes).reshape(x.shape)
    moved = np.moveaxis(x, axis, -1)
    rows = function(moved.reshape(-1, moved.shape[-1]), c.lanes)
    return np.moveaxis(rows.reshape(moved.shape), -1, axis)


@kernel("LayerNormalization")
def _layer_norm(c: KernelCall) -> Array:
    x, scale, shift = c.array(0), c.array(1), c.optional(2)
    axis = c.whole("axis", -1) % x.ndim
    rows = x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)
    epsilon = F32(c.number("epsilon", 1e-5))
    weight, bias = scale.reshape(-1), None if shift is None else shift.reshape(-1)
    if rows.shape[1] < _LANES or not c.lanes.fused:
        return _normalized_one_by_one(rows, weight, bias, epsilon).reshape(x.shape)
    normal = _normalized(rows, epsilon)
    y = (normal * weight).astype(F32) if bias is None else fma(normal, weight, bias)
    return y.reshape(x.shape)


def _normalized(x: Array, epsilon: np.float32) -> Array:
    """Rows with mean 0 and deviation 1: the mean in float64, squares in eight lanes."""
    mean = x.astype(np.float64).mean(axis=1, keepdims=True).astype(F32)
    centred = (x - mean).astype(F32)
    whole = x.shape[1] // _LANES * _LANES
    lanes = np.zeros((len(x), _LANES), F32)
    for start in range(0, whole, _LANES):
        part = centred[:, start : start + _LANES]
        lanes = fma(part, part, lanes)
    fours = whole + (x.shape[1] - whole) // 4 * 4
    four = centred[:, whole:fours]
    squares = in_turn(folded(lanes), (four * four).astype(F32))
    for i in range(fours, x.shape[1]):  # where the compiler fuses what is left of its fours
        column = centred[:, i : i + 1]
        squares = fma(column, column, squares)
    variance = (squares / F32(x.shape[1])).astype(F32)
    return np.asarray(centred * (F32(1.0) / np.sqrt(variance + epsilon)).astype(F32), F32)


def _normalized_one_by_one(
    x: Array, scale: Array, shift: Array | None, epsilon: np.float32
) -> Array:
    """Welford's running mean and squares, a division for each element.

    So go rows of fewer than eight, and on CPUs without AVX2 all rows.
    """
    mean, squares = np.zeros((2, len(x), 1), F32)
    for i in range(x.shape[1]):
        before = (x[:, i : i + 1] - mean).astype(F32)
        mean = (mean + (before / F32(i + 1)).astype(F32)).astype(F32)
        after = (x[:, i : i + 1] - mean).astype(F32)
        squares = (squares + (before * after).astype(F32)).astype(F32)
    variance = (squares / F32(x.shape[1])).astype(F32)
    deviation = np.sqrt((variance + epsilon).astype(F32)).astype(F32)
    y = (((x - mean).astype(F32) / deviation).astype(F32) * scale).astype(F32)
    return y if shift is None else np.asarray(y + shift, F32)


@kernel("BatchNormalization")
def _batch_norm(c: KernelCall) -> Array:
    x, scale, shift, mean, variance = (c.array(i) for i in range(5))
    deviation = np.sqrt((variance + F32(c.number("epsilon", 1e-5))).astype(F32))
    factor = (scale * (F32(1.0) / deviation).astype(F32)).astype(F32)
    offset = (shift - (mean * factor).astype(F32)).astype(F32)
    column = (-1, *[1] * (x.ndim - 2))
    y = (x * factor.reshape(column)).astype(F32) + offset.reshape(column)
    return np.asarray(y, F32)


@kernel("AveragePool")
def _average(c: KernelCall) -> Array:
    if any(d != 1 for d in c.ints("dilations", [])):
        msg = "a dilated window has no kernel here"
        raise UnsupportedError(msg)
    return average_pool(c, c.array(0))


@kernel("GlobalMaxPool")
def _global_max(c: KernelCall) -> Array:
    x = c.array(0)
    return np.asarray(x.max(axis=tuple(range(2, x.ndim)), keepdims=True))


@kernel("MaxPool")
def _max_pool(c: KernelCall) -> Array:
    """The largest value of each window; of bytes and floats alike."""
    x, kernel_size = c.array(0), c.ints("kernel_shape", [])
    if len([v for v in c.node.outputs if v.name]) > 1:
        msg = "places of maxima have no kernel here"
        raise UnsupportedError(msg)
    n = len(kernel_size)
    strides, dilations = c.ints("strides", [1] * n), c.ints("dilations", [1] * n)
    pads = padding(c, x.shape[2:], kernel_size, strides, dilations)
    spans = pooled_sizes(c, x.shape[2:], kernel_size, strides, pads)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    ends = [
        max((m - 1) * s + d * (k - 1) + 1 - p - size, 0)
        for m, s, d, k, p, size in zip(
            spans, strides, dilations, kernel_size, pads[:n], x.shape[2:], strict=True
        )
    ]
    places = [(0, 0), (0, 0), *zip(pads[:n], ends, strict=True)]
    padded = np.pad(x, places, constant_values=lowest)
    best = np.full((*x.shape[:2], *spans), lowest, x.dtype)
    for place in np.ndindex(*kernel_size):
        window = tuple(
            slice(p * d, p * d + (m - 1) * s + 1, s)
            for p, d, m, s in zip(place, dilations, spans, strides, strict=True)
        )
        np.maximum(best, padded[(slice(None), slice(None), *window)], out=best)
    return best
