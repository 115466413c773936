"""Sums and means of float32 over axes, in the order in which onnxruntime adds.

Which loop it takes follows from the shape alone: neighbouring axes that are both reduced or both
kept count as one. Sums over the innermost axis are Eigen's, built for registers of four numbers on
every x86 CPU; they begin at the first address that is a multiple of 16 bytes, so the place of a row
in memory counts. A sum over a middle axis is a product with a row of ones, provided that the outer
axis is at least two and at least as long as onnxruntime has threads, else it goes one by one; so
does the sum over the outer and the inner axis by the middle one. Up to two threads are assumed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fxquant.onnx.integer.arithmetic import F32, Array
from fxquant.onnx.integer.call import KernelCall, kernel
from fxquant.onnx.integer.graph import sizes
from fxquant.onnx.integer.lanes import Lanes, folded, in_lanes, in_turn, one_after_the_other

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
