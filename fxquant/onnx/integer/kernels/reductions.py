"""Operators in float32 that add many values: their last bits depend on the order of the sums.

Softmax and layer norm add in the lanes of onnxruntime's kernels for the CPU and are equal bit for
bit, as pools and batch norm are. Products of matrices and convolutions add in torch's order.

Sums and means over axes add in the order in which onnxruntime adds. Which loop it takes follows
from the shape alone: neighbouring axes that are both reduced or both kept count as one. Sums over
the innermost axis are Eigen's, built for registers of four numbers on every x86 CPU; they begin
at the first address that is a multiple of 16 bytes, so the place of a row in memory counts. A sum
over a middle axis is a product with a row of ones, provided that the outer axis is at least two
and at least as long as onnxruntime has threads, else it goes one by one; so does the sum over the
outer and the inner axis by the middle one. Up to two threads are assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.onnx.integer.kernels import float_functions
from fxquant.onnx.integer.kernels.arithmetic import F32, Array, fma
from fxquant.onnx.integer.kernels.gemm import as_tensor, padding
from fxquant.onnx.integer.kernels.kernel_graph import sizes
from fxquant.onnx.integer.kernels.lanes import Lanes, folded, in_lanes, in_turn, one_after_the_other
from fxquant.onnx.integer.kernels.lookup import average_pool, pooled_sizes
from fxquant.onnx.integer.kernels.registry import KernelCall, UnsupportedError, kernel

_EIGEN = 4  # numbers in the registers that Eigen is built for
_THREADS = 2
_BLOCK = 128  # rows and columns of a matrix product that are done at once


@kernel("ReduceMean", "ReduceSum")
def _reduce(c: KernelCall) -> Array:
    x, given = c.array(0), c.axes()
    if not given and c.whole("noop_with_empty_axes", 0):
        return x
    axes = sorted({a % x.ndim for a in given}) if given else list(range(x.ndim))
    mean = c.node.op_type == "ReduceMean"
    if x.dtype != F32 or not x.size:
        function = np.mean if mean else np.sum
        total = np.asarray(function(x, axis=tuple(axes), keepdims=True)).astype(x.dtype)
    else:
        kept = [1 if a in axes else s for a, s in enumerate(x.shape)]
        total = sums_over(x, axes, c.lanes).reshape(kept)
        total = (total / F32(x.size // total.size)).astype(F32) if mean else total
    return total if c.whole("keepdims", 1) else total.squeeze(tuple(axes))


def sums_over(x: Array, axes: Sequence[int], lanes: Lanes) -> Array:
    """Sums over some axes; the result has the kept elements in their order.

    Args:
        x: float32, not empty.
        axes: what is reduced, ascending, from zero.
        lanes: of the CPU.
    """
    runs: list[tuple[int, bool]] = []
    for axis, size in enumerate(x.shape):
        reduced = axis in axes
        if runs and runs[-1][1] == reduced:
            runs[-1] = (runs[-1][0] * size, reduced)
        else:
            runs.append((size, reduced))
    merged = x.reshape([size for size, _ in runs])
    kind = "".join("R" if reduced else "K" for _, reduced in runs)
    if kind in ("", "K"):
        return x
    if kind in ("R", "KR"):
        return row_sums(merged.reshape(-1, merged.shape[-1]))
    if kind == "RKR" and merged.shape[1] >= _THREADS:
        rows = row_sums(merged.reshape(-1, merged.shape[-1]))
        return one_after_the_other(rows.reshape(merged.shape[:-1]), 0)
    if kind == "KRK" and len(merged) >= _THREADS:
        return _times_ones(merged, lanes)
    kept = [a for a in range(x.ndim) if a not in axes]
    count = int(np.prod([x.shape[a] for a in axes]))
    return one_after_the_other(x.transpose(*axes, *kept).reshape(count, -1), 0)


def row_sums(x: Array, *, in_place: bool = True) -> Array:
    """Sums of the rows of a matrix as Eigen adds them: [N, K] -> [N].

    Args:
        x: float32.
        in_place: whether the rows lie in memory one behind the other; else each begins a register.
    """
    x = np.ascontiguousarray(x)
    starts = np.arange(len(x)) * x.shape[1] * in_place % _EIGEN
    result = np.empty(len(x), F32)
    for start in np.unique(starts):
        chosen = starts == start
        result[chosen] = _row_sums(x[chosen], int(-start) % _EIGEN)
    return result


def _row_sums(x: Array, before: int) -> Array:
    """The same where each row begins `before` numbers in front of a whole register."""
    whole = before + max(x.shape[1] - before, 0) // _EIGEN * _EIGEN
    if whole <= before:
        return one_after_the_other(x, 1)
    registers, pairs = x[:, before:whole], (whole - before) // (2 * _EIGEN)
    both = in_lanes(registers[:, : pairs * 2 * _EIGEN], 2 * _EIGEN)
    lanes = (both[:, :_EIGEN] + both[:, _EIGEN:]).astype(F32)
    if pairs * 2 * _EIGEN < registers.shape[1]:
        lanes = (lanes + registers[:, -_EIGEN:]).astype(F32)
    ends = np.concatenate([x[:, :before], x[:, whole:]], axis=1)
    return in_turn(folded(lanes), ends)[:, 0]


def _times_ones(x: Array, lanes: Lanes) -> Array:
    """Sums over the middle axis as products with a row of ones: [K, R, S] -> [K, S]."""
    rows = x.shape[1]
    if not lanes.fused:
        size = _block(rows, x.shape[2])
        parts = [one_after_the_other(x[:, i : i + size], 1) for i in range(0, rows, size)]
        return one_after_the_other(np.stack(parts), 0)
    fours = rows // 4 * 4
    groups = [x[:, i : i + 4] for i in range(0, fours, 4)]
    if rows - fours >= 2:
        groups.append(x[:, fours : fours + 2])
    if rows % 2:
        groups.append(x[:, -1:])
    return one_after_the_other(np.stack([one_after_the_other(g, 1) for g in groups]), 0)


def _block(rows: int, columns: int) -> int:
    """How many rows a matrix product without a kernel for single rows adds before it stores."""
    height, width = _BLOCK, _BLOCK
    while columns < rows and width > 16 and width // 2 >= columns:
        height, width = height * 2, width // 2
    return height


# --- what is made of such sums -------------------------------------------------------------------


@kernel("GlobalAveragePool")
def _global_average(c: KernelCall) -> Array:
    x = c.array(0)
    rows = x.reshape(x.shape[0] * x.shape[1], -1)
    source = c.node.inputs[0]
    blocked = source is not None and x.ndim == 4 and (
        x.shape[1] % c.lanes.block == 0 if source.producer() is None
        else _in_blocks(source, c.lanes.block)
    )  # fmt: skip
    whole = 0 if blocked else rows.shape[1] // _EIGEN * _EIGEN
    total = in_turn(folded(in_lanes(rows[:, :whole], _EIGEN)), rows[:, whole:])
    means = (total / F32(rows.shape[1])).astype(F32)
    return means.reshape(*x.shape[:2], *[1] * (x.ndim - 2))


_GIVE_BLOCKS = frozenset(("Conv", "MaxPool", "AveragePool"))
_KEEP_BLOCKS = frozenset(("Concat", "Relu", "Sigmoid", "Tanh", "Add", "Sum"))


def _in_blocks(value: ir.Value, block: int) -> bool:
    """Whether channels lie side by side in memory, so that each adds its own numbers one by one.

    Pools and convolutions write float images so where their channels fill blocks.
    """
    node, shape = value.producer(), sizes(value)
    if node is None or shape is None or len(shape) != 4 or shape[1] is None or shape[1] % block:
        return False
    if node.op_type in _GIVE_BLOCKS:
        return True
    kept = node.op_type in _KEEP_BLOCKS
    return kept and all(v is not None and _in_blocks(v, block) for v in node.inputs)


@kernel("InstanceNormalization")
def _instance_norm(c: KernelCall) -> Array:
    x, scale, shift = (c.array(i) for i in range(3))
    rows = x.reshape(x.shape[0] * x.shape[1], -1)
    count, epsilon = F32(rows.shape[1]), F32(c.number("epsilon", 1e-5))
    mean = (row_sums(rows) / count).astype(F32)
    centred = (rows - mean[:, None]).astype(F32)
    squares = row_sums((centred * centred).astype(F32), in_place=False)
    deviation = np.sqrt(((squares / count).astype(F32) + epsilon).astype(F32))
    factor = ((F32(1.0) / deviation).astype(F32) * np.tile(scale, len(x))).astype(F32)
    offset = (np.tile(shift, len(x)) - (mean * factor).astype(F32)).astype(F32)
    y = (rows * factor[:, None]).astype(F32) + offset[:, None]
    return np.asarray(y, F32).reshape(x.shape)


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
    return _by_rows(c, float_functions.softmax)


@kernel("LogSoftmax")
def _log_softmax(c: KernelCall) -> Array:
    return _by_rows(c, float_functions.log_softmax)


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
