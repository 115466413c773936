"""Operators that only move, copy or choose values, on any type, and arithmetic on shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxquant.onnx.integer.kernels.arithmetic import Array
from fxquant.onnx.integer.kernels.registry import KernelCall, UnsupportedError, kernel


@kernel("Reshape")
def _reshape(c: KernelCall) -> Array:
    x, wanted = c.array(0), [int(s) for s in c.array(1)]
    if not c.whole("allowzero", 0):
        wanted = [x.shape[i] if s == 0 else s for i, s in enumerate(wanted)]
    return x.reshape(wanted)


@kernel("Flatten")
def _flatten(c: KernelCall) -> Array:
    x, axis = c.array(0), c.whole("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(*(int(np.prod(d, dtype=np.int64)) for d in (x.shape[:axis], x.shape[axis:])))


@kernel("Transpose")
def _transpose(c: KernelCall) -> Array:
    x = c.array(0)
    return x.transpose(c.ints("perm", range(x.ndim)[::-1]))


@kernel("Squeeze")
def _squeeze(c: KernelCall) -> Array:
    x, axes = c.array(0), c.axes()
    return np.squeeze(x, None if axes is None else tuple(a % x.ndim for a in axes))


@kernel("Unsqueeze")
def _unsqueeze(c: KernelCall) -> Array:
    return np.expand_dims(c.array(0), tuple(c.axes() or ()))


@kernel("Concat")
def _concat(c: KernelCall) -> Array:
    return np.concatenate(c.arrays, axis=c.whole("axis", 0))


@kernel("Split")
def _split(c: KernelCall) -> Sequence[Array]:
    x, given = c.array(0), c.optional(1)
    axis, count = c.whole("axis", 0), len(c.node.outputs)
    parts = c.ints("split", []) if given is None else [int(s) for s in given]
    if not parts:
        size = -(-x.shape[axis] // count)
        parts = [min(size, x.shape[axis] - i * size) for i in range(count)]
    return np.split(x, np.cumsum(parts)[:-1], axis=axis)


@kernel("Slice")
def _slice(c: KernelCall) -> Array:
    x = c.array(0)
    if c.optional(1) is None:
        starts, ends = c.ints("starts", []), c.ints("ends", [])
        axes, steps = c.ints("axes", range(len(starts))), [1] * len(starts)
    else:
        starts, ends = c.array(1).tolist(), c.array(2).tolist()
        given, stride = c.optional(3), c.optional(4)
        axes = list(range(len(starts))) if given is None else given.tolist()
        steps = [1] * len(starts) if stride is None else stride.tolist()
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # backwards, an end before the first element is written as a number below -size
        stop = None if step < 0 and end < -x.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return x[tuple(index)]


@kernel("Gather")
def _gather(c: KernelCall) -> Array:
    return np.take(c.array(0), c.array(1), axis=c.whole("axis", 0))


@kernel("GatherElements")
def _gather_elements(c: KernelCall) -> Array:
    x, index, axis = c.array(0), c.array(1), c.whole("axis", 0)
    window = tuple(
        slice(None) if i == axis % x.ndim else slice(n) for i, n in enumerate(index.shape)
    )
    return np.take_along_axis(x[window], np.where(index < 0, index + x.shape[axis], index), axis)


@kernel("Expand")
def _expand(c: KernelCall) -> Array:
    x, shape = c.array(0), tuple(int(s) for s in c.array(1))
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, shape))


@kernel("Tile")
def _tile(c: KernelCall) -> Array:
    return np.tile(c.array(0), [int(r) for r in c.array(1)])


@kernel("Pad")
def _pad(c: KernelCall) -> Array:
    x, mode = c.array(0), c.text("mode", "constant")
    given, value, chosen = c.optional(1), c.optional(2), c.optional(3)
    pads = c.ints("pads", []) if given is None else [int(p) for p in given]
    axes = list(range(x.ndim)) if chosen is None else [int(a) % x.ndim for a in chosen]
    n = len(axes)
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[i], pads[n + i]
    if min(pads, default=0) < 0 or mode not in ("constant", "reflect", "edge"):
        msg = f"padding of mode {mode} has no kernel here"
        raise UnsupportedError(msg)
    places = list(zip(begins, ends, strict=True))
    if mode != "constant":
        return np.pad(x, places, mode=mode)  # type: ignore[call-overload,no-any-return]
    filling = x.dtype.type(0) if value is None else value.reshape(())
    return np.pad(x, places, constant_values=filling)


@kernel("Shape")
def _shape(c: KernelCall) -> Array:
    shape = c.array(0).shape
    end = c.whole("end", len(shape))
    return np.array(shape[slice(c.whole("start", 0), end)], np.int64)


@kernel("Size")
def _size(c: KernelCall) -> Array:
    return np.array(c.array(0).size, np.int64)


@kernel("ConstantOfShape")
def _constant_of_shape(c: KernelCall) -> Array:
    found = c.node.attributes.get("value")
    value = np.zeros(1, np.float32) if found is None else found.as_tensor().numpy()
    return np.full([int(s) for s in c.array(0)], value.reshape(-1)[0])


@kernel("Range")
def _range(c: KernelCall) -> Array:
    start, stop, step = (c.array(i) for i in range(3))
    return np.arange(start.item(), stop.item(), step.item(), dtype=start.dtype)


@kernel("Trilu")
def _triangle(c: KernelCall) -> Array:
    given = c.optional(1)
    k = 0 if given is None else int(given.item())
    return np.triu(c.array(0), k) if c.whole("upper", 1) else np.tril(c.array(0), k)


@kernel("DepthToSpace")
def _depth_to_space(c: KernelCall) -> Array:
    x, block = c.array(0), c.whole("blocksize", 1)
    n, channels, height, width = x.shape
    rest = channels // (block * block)
    if c.text("mode", "DCR") == "CRD":
        parts = x.reshape(n, rest, block, block, height, width).transpose(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(n, block, block, rest, height, width).transpose(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, rest, height * block, width * block)


@kernel("ArgMax")
def _arg_max(c: KernelCall) -> Array:
    x, axis = c.array(0), c.whole("axis", 0)
    if c.whole("select_last_index", 0):
        msg = "the last of equal maxima has no kernel here"
        raise UnsupportedError(msg)
    return np.asarray(np.argmax(x, axis=axis, keepdims=bool(c.whole("keepdims", 1))), np.int64)


def _extreme(c: KernelCall) -> Array:
    x, axes = c.array(0), c.axes()
    if axes == [] and c.whole("noop_with_empty_axes", 0):
        return x
    chosen = tuple(axes) if axes else None
    function = np.max if c.node.op_type == "ReduceMax" else np.min
    return np.asarray(function(x, axis=chosen, keepdims=bool(c.whole("keepdims", 1))))


kernel("ReduceMax", "ReduceMin")(_extreme)
