"""Views and moves: values go elsewhere and stay what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fxquant.onnx.lowering.context import Call, Emitted, UnsupportedError, static_sizes
from fxquant.onnx.lowering.emitters import emits, emits_function

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir


@emits("view", "reshape")
def _reshape(c: Call) -> ir.Value:
    return _to_shape(c, c["shape"])


@emits("view_as")
def _view_as(c: Call) -> ir.Value:
    return c.reshape(c.tensor(), c.out.shape, c.held("other"))


def _to_shape(c: Call, wanted: Any) -> ir.Value:
    """A Reshape: what both runs saw where that is enough, else the sizes the program computes."""
    if isinstance(wanted, torch.dtype):
        msg = "a view of the same bytes as another dtype"
        raise UnsupportedError(msg)
    shape = c.out.shape
    if sum(not isinstance(s, int) for s in shape) <= 1:
        return c.reshape(c.tensor(), shape)
    sizes = c.sizes(wanted)
    computed = [s if isinstance(s, int) else w for s, w in zip(shape, sizes, strict=True)]
    return c.reshape(c.tensor(), computed, c.held("input"))


@emits("flatten")
def _flatten(c: Call) -> ir.Value:
    shape, made = c.spec().shape, c.out.shape
    if shape == made:
        return c.tensor()
    if c.spec().rank and c.axis("start_dim") == 1 and len(made) == 2:
        return c.op("Flatten", c.tensor(), axis=1)
    return c.reshape(c.tensor(), made, c.held("input"))


@emits("unflatten")
def _unflatten(c: Call) -> ir.Value:
    return c.reshape(c.tensor(), c.out.shape, c.held("input"))


@emits("squeeze")
def _squeeze(c: Call) -> Emitted:
    shape, dim = c.spec().shape, c.static("dim")
    given = range(len(shape)) if dim is None else dim if isinstance(dim, (tuple, list)) else (dim,)
    axes = [int(d) % max(len(shape), 1) for d in given]
    axes = [a for a in axes if shape and shape[a] == 1]
    return c.squeeze(c.tensor(), axes) if axes else c.held("input")


@emits("unsqueeze")
def _unsqueeze(c: Call) -> ir.Value:
    return c.unsqueeze(c.tensor(), [int(c.static("dim")) % (c.spec().rank + 1)])


# --- transposition -----------------------------------------------------------------------------


def _permuted(c: Call, order: Sequence[int]) -> Emitted:
    if list(order) == list(range(len(order))):
        return c.held("input")
    return c.op("Transpose", c.tensor(), perm=list(order))


def _swapped(c: Call, first: int, second: int) -> Emitted:
    rank = c.spec().rank
    if not rank:
        return c.held("input")
    order = list(range(rank))
    first, second = first % rank, second % rank
    order[first], order[second] = order[second], order[first]
    return _permuted(c, order)


@emits("permute")
def _permute(c: Call) -> Emitted:
    rank = c.spec().rank
    return _permuted(c, [int(d) % rank for d in c.static("dims")])


@emits("transpose")
def _transpose(c: Call) -> Emitted:
    return _swapped(c, int(c.static("dim0")), int(c.static("dim1")))


@emits("swapaxes")
def _swapaxes(c: Call) -> Emitted:
    return _swapped(c, int(c.static("axis0")), int(c.static("axis1")))


@emits("t")
def _t(c: Call) -> Emitted:
    return _swapped(c, 0, -1)


@emits("adjoint")
def _adjoint(c: Call) -> Emitted:
    return _swapped(c, -2, -1)


@emits("movedim")
def _movedim(c: Call) -> Emitted:
    rank = c.spec().rank
    pairs = [c.static(n) for n in ("source", "destination")]
    source, target = (
        [int(d) % rank for d in (p if isinstance(p, (tuple, list)) else (p,))] for p in pairs
    )
    places = dict(zip(target, source, strict=True))
    rest = iter(i for i in range(rank) if i not in source)
    return _permuted(c, [places[i] if i in places else next(rest) for i in range(rank)])


@emits_function(getattr)
def _attribute(c: Call) -> Emitted:
    """Attributes that are views: `x.T`, `x.mT`, `x.real`, `x.data`."""
    c.arguments = {"input": c.node.args[0]}
    name, rank = c.node.args[1], c.spec().rank
    if name in ("real", "data"):
        return c.held("input")
    if name == "T" or (name == "H" and rank == 2):
        return _permuted(c, list(reversed(range(rank))))
    if name in ("mT", "mH"):
        return _swapped(c, -2, -1)
    msg = f"the attribute {name!r} of a tensor"
    raise UnsupportedError(msg)


# --- repetition --------------------------------------------------------------------------------


@emits("expand", "broadcast_to")
def _expand(c: Call) -> ir.Value:
    sizes = c.sizes(c["size"])
    # Expand lets a 1 stand for whatever there is
    return c.op("Expand", c.tensor(), c.builder.vector(1 if s == -1 else s for s in sizes))


@emits("expand_as")
def _expand_as(c: Call) -> ir.Value:
    other = c.held("other")
    if all(isinstance(s, int) for s in c.out.shape):
        return c.op("Expand", c.tensor(), [int(s) for s in c.out.shape])
    return c.op("Expand", c.tensor(), c.op("Shape", other.any_value(c.builder)))


@emits("repeat")
def _repeat(c: Call) -> ir.Value:
    return _tiled(c, c.sizes(c["repeats"]))


@emits("tile")
def _tile(c: Call) -> ir.Value:
    counts = c.sizes(c["dims"])
    return _tiled(c, [*[1] * (c.spec().rank - len(counts)), *counts])


def _tiled(c: Call, counts: Sequence[int | ir.Value]) -> ir.Value:
    x, extra = c.tensor(), len(counts) - c.spec().rank
    if extra:
        x = c.unsqueeze(x, list(range(extra)))
    return c.op("Tile", x, c.builder.vector(counts))


@emits("repeat_interleave")
def _repeat_interleave(c: Call) -> ir.Value:
    x, dim = c.tensor(), c.static("dim")
    repeats = c.constant("repeats") if c.is_tensor("repeats") else torch.tensor(c.static("repeats"))
    if repeats is None:
        msg = "how often is known at run time only"
        raise UnsupportedError(msg)
    shape = c.spec().shape
    if dim is None:
        x, shape, axis = c.op("Reshape", x, [-1]), (_count(shape),), 0
    else:
        axis = c.axis()
    size = shape[axis]
    if isinstance(size, int):
        order = torch.arange(size).repeat_interleave(repeats.cpu())
        return c.op("Gather", x, c.builder.constant(order), axis=axis)
    return _interleaved(c, x, axis, len(shape), int(repeats))


def _interleaved(c: Call, x: ir.Value, axis: int, rank: int, times: int) -> ir.Value:
    """Along a dynamic axis: a new axis behind it is tiled and merged into it."""
    counts = [1] * (rank + 1)
    counts[axis + 1] = times
    x = c.op("Tile", c.unsqueeze(x, [axis + 1]), counts)
    # 0 keeps a size, -1 takes the merged one; sizes behind the merged axis are static
    shape = c.out.shape
    return c.op(
        "Reshape", x, [0 if i < axis else -1 if i == axis else shape[i] for i in range(rank)]
    )


def _count(shape: Sequence[Any]) -> int:
    return int(np.prod(static_sizes(shape, "the flattened tensor")))


# --- joining and splitting ---------------------------------------------------------------------


@emits("cat")
def _cat(c: Call) -> ir.Value:
    parts = [c.value(t, "tensors", c.out.dtype) for t in c["tensors"] if not _is_legacy_empty(c, t)]
    axis = int(c.static("dim")) % len(c.out.shape)
    return c.op("Concat", *parts, axis=axis) if len(parts) > 1 else c.op("Identity", parts[0])


def _is_legacy_empty(c: Call, x: Any) -> bool:
    """torch.cat leaves out empty vectors whatever the other shapes are."""
    return c.spec_of(x).shape == (0,) and len(c.out.shape) > 1


@emits("stack")
def _stack(c: Call) -> ir.Value:
    axis = int(c.static("dim")) % len(c.out.shape)
    parts = [c.unsqueeze(c.value(t, "tensors", c.out.dtype), [axis]) for t in c["tensors"]]
    return c.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


@emits("chunk")
def _chunk(c: Call) -> Sequence[ir.Value]:
    axis, parts = c.axis(), len(c.out)
    if c.opset < 18 or all(isinstance(part.shape[axis], int) for part in c.out):
        return _parts(c)
    # equal parts, the last one smaller: both programs round the size of a part up
    return c.builder.ops("Split", parts, c.tensor(), axis=axis, num_outputs=parts)


def _parts(c: Call) -> Sequence[ir.Value]:
    axis = c.axis()
    sizes = [part.shape[axis] for part in c.out]
    return c.split(c.tensor(), axis, static_sizes(sizes, "a part"))


emits("split", "tensor_split")(_parts)


@emits("unbind")
def _unbind(c: Call) -> Sequence[ir.Value]:
    axis = c.axis()
    return [c.squeeze(part, [axis]) for part in c.split(c.tensor(), axis, [1] * len(c.out))]


# --- turning -----------------------------------------------------------------------------------


@emits("roll")
def _roll(c: Call) -> ir.Value:
    x, shape = c.tensor(), c.spec().shape
    shifts, dims = (_as_tuple(c.static(n)) for n in ("shifts", "dims"))
    if not dims:
        flat = _rolled(c, c.op("Reshape", x, [-1]), 0, shifts[0], _count_or_none(shape))
        return c.reshape(flat, shape, c.held("input"))
    for shift, dim in zip(shifts, dims, strict=True):
        axis = dim % len(shape)
        x = _rolled(c, x, axis, shift, static_sizes([shape[axis]], "the rolled axis")[0])
    return x


def _as_tuple(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (tuple, list)) else (int(value),)


def _count_or_none(shape: Sequence[Any]) -> int | None:
    return None if any(not isinstance(s, int) for s in shape) else _count(shape)


def _rolled(c: Call, x: ir.Value, axis: int, shift: int, size: int | None) -> ir.Value:
    # a slice counts from the end by itself, so a dynamic size need not be known
    shift = shift if size is None else shift % max(size, 1)
    if not shift:
        return x
    return c.op("Concat", c.slice(x, axis, -shift), c.slice(x, axis, 0, -shift), axis=axis)


def _flipped(c: Call, x: ir.Value, axes: Sequence[int]) -> ir.Value:
    for axis in axes:
        x = c.slice(x, axis, -1, None, -1)
    return x


@emits("flip")
def _flip(c: Call) -> ir.Value:
    rank = c.spec().rank
    return _flipped(c, c.tensor(), [int(d) % rank for d in _as_tuple(c.static("dims"))])


@emits("rot90")
def _rot90(c: Call) -> ir.Value:
    x, rank, turns = c.tensor(), c.spec().rank, int(c.static("k")) % 4
    first, second = (int(d) % rank for d in c.static("dims"))
    if turns in (0, 2):
        return _flipped(c, x, [first, second]) if turns else x
    order = list(range(rank))
    order[first], order[second] = order[second], order[first]
    if turns == 1:
        return c.op("Transpose", _flipped(c, x, [second]), perm=order)
    return _flipped(c, c.op("Transpose", x, perm=order), [second])
