"""Indexing, gathering and scattering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from fxquant.onnx.lowering.context import Call, UnsupportedError, static_sizes
from fxquant.onnx.lowering.emitters import emits
from fxquant.onnx.lowering.values import LoweredValue, QuantParamValues, SizeValue

if TYPE_CHECKING:
    from collections.abc import Sequence

_END = 2**63 - 1


@emits("getitem")
def _getitem(c: Call) -> Any:
    items = _items(c)
    x = _sliced(c, c.tensor(), items)
    x, items = _selected(c, x, items)
    axes = [i for i, item in enumerate(items) if item is None]
    if axes:
        x = c.unsqueeze(x, axes)
    return _gathered(c, x, items)


def _items(c: Call) -> list[Any]:
    """One item for each axis of the input: slice, size, tensor; None where an axis is added."""
    index = c["index"]
    given = list(index) if isinstance(index, (tuple, list)) else [index]
    found = [_resolved(c, i) for i in given]
    taken = sum(_axes_taken(i) for i in found)
    at = next((k for k, i in enumerate(found) if i is Ellipsis), None)
    rest = [slice(None)] * (c.spec().rank - taken)
    if at is None:
        return [*found, *rest]
    return [*found[:at], *rest, *found[at + 1 :]]


def _resolved(c: Call, item: Any) -> Any:
    if isinstance(item, slice):
        return slice(*(c.resolve(v) for v in (item.start, item.stop, item.step)))
    found = c.resolve(item)
    if isinstance(found, LoweredValue) and found.spec.dtype in (torch.bool, torch.uint8):
        msg = "an index by a mask has a shape that depends on values"
        raise UnsupportedError(msg)
    if isinstance(found, (list, tuple)):
        return torch.tensor(found)
    return found


def _axes_taken(item: Any) -> int:
    return 0 if item is None or item is Ellipsis or isinstance(item, bool) else 1


def _sliced(c: Call, x: ir.Value, items: Sequence[Any]) -> ir.Value:
    """All slices at once."""
    parts: list[tuple[Any, Any, int, Any]] = []
    axis = 0
    for item in items:
        if isinstance(item, slice) and (item.start, item.stop, item.step) != (None, None, None):
            stop = _END if item.stop is None else item.stop
            parts.append((item.start or 0, stop, axis, item.step or 1))
        axis += item is not None
    if not parts:
        return x
    starts, ends, axes, steps = zip(*parts, strict=True)
    return c.op("Slice", x, *(c.builder.vector(_sizes(v)) for v in (starts, ends, axes, steps)))


def _sizes(values: Sequence[Any]) -> list[int | ir.Value]:
    return [v.value if isinstance(v, SizeValue) else int(v) for v in values]


def _selected(c: Call, x: ir.Value, items: Sequence[Any]) -> tuple[ir.Value, list[Any]]:
    """Single positions, from the right so that the axes on the left keep their numbers."""
    kept = list(items)
    axes = [sum(i is not None for i in items[:k]) for k in range(len(items))]
    for k in reversed(range(len(items))):
        if isinstance(items[k], (int, SizeValue)) and not isinstance(items[k], bool):
            x = c.op("Gather", x, _position(c, items[k]), axis=axes[k])
            del kept[k]
    return x, kept


def _position(c: Call, item: int | SizeValue) -> ir.Value:
    if isinstance(item, SizeValue):
        return c.squeeze(item.value, [0])
    return c.builder.number(item, torch.int64)


def _gathered(c: Call, x: ir.Value, items: Sequence[Any]) -> ir.Value:
    """Positions given by tensors."""
    tensors = [k for k, i in enumerate(items) if isinstance(i, (LoweredValue, torch.Tensor))]
    if not tensors:
        return x
    if len(tensors) == 1:
        return c.op("Gather", x, _indices(c, items[tensors[0]]), axis=tensors[0])
    if tensors != list(range(tensors[0], tensors[0] + len(tensors))) or tensors[0] != 0:
        msg = "several index tensors that are not the first axes"
        raise UnsupportedError(msg)
    return c.op("GatherND", x, _joined(c, [items[k] for k in tensors]))


def _indices(c: Call, item: Any) -> ir.Value:
    if isinstance(item, LoweredValue):
        return c.cast(item.value(c.builder), item.spec.dtype, torch.int64)
    return c.builder.constant(item.to(torch.int64))


def _joined(c: Call, items: Sequence[Any]) -> ir.Value:
    """Index tensors, broadcast against each other, as one tensor of index tuples."""
    values = [_indices(c, i) for i in items]
    total = values[0]
    for value in values[1:]:
        total = c.op("Add", total, value)
    shape = c.op("Shape", total)
    columns = [c.unsqueeze(c.op("Expand", v, shape), [-1]) for v in values]
    return c.op("Concat", *columns, axis=-1)


@emits("setitem")
def _setitem(c: Call) -> ir.Value:
    """A write to a constant region: a mask chooses between the old values and the new ones."""
    shape = c.spec().shape
    index = c["index"]
    given = tuple(index) if isinstance(index, (tuple, list)) else (index,)
    items = [
        slice(*(c.plain(v) for v in (i.start, i.stop, i.step)))
        if isinstance(i, slice)
        else c.plain(i)
        for i in given
    ]
    if any(not isinstance(i, (int, slice, type(Ellipsis))) for i in items) or _is_dynamic(
        items, shape
    ):
        msg = "a write to positions that are known at run time only"
        raise UnsupportedError(msg)
    sizes = [s if isinstance(s, int) else 1 for s in shape]
    mask = torch.zeros(sizes, dtype=torch.bool)
    mask[tuple(items)] = True
    dtype = c.spec().dtype
    value = c.value(c["value"], "value", dtype)
    if c.is_tensor("value") and c.spec("value").rank:
        value = _placed(c, value, items, sizes)
    return c.op("Where", c.builder.constant(mask), value, c.tensor())


def _is_dynamic(items: Sequence[Any], shape: Sequence[Any]) -> bool:
    """Whether anything but a whole slice is written along a dynamic axis."""
    if Ellipsis in items:
        at = items.index(Ellipsis)
        rest = [slice(None)] * (len(shape) - len(items) + 1)
        items = [*items[:at], *rest, *items[at + 1 :]]
    whole = slice(None)
    return any(i != whole for i, s in zip(items, shape, strict=False) if not isinstance(s, int))


def _placed(c: Call, value: ir.Value, items: Sequence[Any], sizes: Sequence[int]) -> ir.Value:
    """The written values, padded to the whole tensor."""
    if any(isinstance(i, slice) and i.step not in (None, 1) for i in items) or Ellipsis in items:
        msg = "a write of a tensor with steps"
        raise UnsupportedError(msg)
    positions = [i for i, item in enumerate(items) if isinstance(item, int)]
    rank = len(sizes)
    if c.spec("value").rank != rank - len(positions):
        msg = "a write of a tensor that is broadcast"
        raise UnsupportedError(msg)
    if positions:
        value = c.unsqueeze(value, positions)
    begin, end = [0] * rank, [0] * rank
    for i, item in enumerate(items):
        start, stop, _ = (
            item if isinstance(item, slice) else slice(item, item % sizes[i] + 1)
        ).indices(sizes[i])
        begin[i], end[i] = start, sizes[i] - stop
    return c.op("Pad", value, [*begin, *end], c.number(0), mode="constant")


# --- one axis ----------------------------------------------------------------------------------


@emits("narrow")
def _narrow(c: Call) -> ir.Value:
    start, length = c.resolve(c["start"]), c.resolve(c["length"])
    item = slice(start, _plus(c, start, length))
    items = [slice(None)] * c.axis()
    return _sliced(c, c.tensor(), [*items, item])


def _plus(c: Call, a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        end = a + b
        return None if a < 0 and not end else end
    vectors = [
        v.value if isinstance(v, SizeValue) else c.builder.constant([int(v)]) for v in (a, b)
    ]
    return SizeValue(c.op("Add", *vectors))


@emits("select")
def _select(c: Call) -> ir.Value:
    index = c.resolve(c["index"])
    if isinstance(index, (int, SizeValue)):
        return c.op("Gather", c.tensor(), _position(c, index), axis=c.axis())
    return c.op("Gather", c.tensor(), _indices(c, index), axis=c.axis())


@emits("index_select")
def _index_select(c: Call) -> ir.Value:
    return c.op("Gather", c.tensor(), c.value(c["index"], "index"), axis=c.axis())


@emits("gather")
def _gather(c: Call) -> ir.Value:
    return c.op("GatherElements", c.tensor(), c.value(c["index"], "index"), axis=c.axis())


@emits("take_along_dim")
def _take_along_dim(c: Call) -> ir.Value:
    x, index = c.tensor(), c.value(c["indices"], "indices", torch.int64)
    if c.static("dim") is None:
        return c.op("Gather", c.op("Reshape", x, [-1]), c.op("Reshape", index, [-1]), axis=0)
    axis = c.axis()
    have, want = c.spec().shape, c.spec("indices").shape
    if any(h != w for i, (h, w) in enumerate(zip(have, want, strict=True)) if i != axis):
        msg = "indices that are broadcast"
        raise UnsupportedError(msg)
    return c.op("GatherElements", x, index, axis=axis)


@emits("scatter")
def _scatter(c: Call) -> ir.Value:
    return _scattered(c, None)


@emits("scatter_add")
def _scatter_add(c: Call) -> ir.Value:
    return _scattered(c, "add")


def _scattered(c: Call, reduction: str | None) -> ir.Value:
    reduction = {"multiply": "mul"}.get(
        str(c.arguments.get("reduce")), c.arguments.get("reduce")
    ) or reduction
    if reduction and c.opset < 16:
        msg = "ScatterElements that adds came with opset 16"
        raise UnsupportedError(msg)
    name = next(n for n in ("src", "value") if c.arguments.get(n) is not None)
    index = c.value(c["index"], "index")
    values = c.value(c[name], name, c.spec().dtype)
    if not c.is_tensor(name) or not c.spec(name).rank:
        values = c.op("Expand", values, c.op("Shape", index))
    elif c.spec(name).shape != c.spec("index").shape:
        values = c.op("Slice", values, [0] * c.spec().rank, c.op("Shape", index))
    return c.op("ScatterElements", c.tensor(), index, values, axis=c.axis(), reduction=reduction)


@emits("index_add")
def _index_add(c: Call) -> ir.Value:
    """Slices of `source` are added where `index` says: the index is spread over their shape."""
    if c.opset < 16:
        msg = "ScatterElements that adds came with opset 16"
        raise UnsupportedError(msg)
    axis, rank, dtype = c.axis(), c.spec().rank, c.spec().dtype
    source = c.value(c["source"], "source", dtype)
    if c["alpha"] != 1:
        source = c.op("Mul", source, c.value(c["alpha"], "alpha", dtype))
    index = c.unsqueeze(
        c.value(c["index"], "index", torch.int64), [d for d in range(rank) if d != axis]
    )
    index = c.op("Expand", index, c.op("Shape", source))
    return c.op("ScatterElements", c.tensor(), index, source, axis=axis, reduction="add")


@emits("masked_select")
def _masked_select(c: Call) -> ir.Value:
    shape = c.op("Shape", c.op("Where", c.value(c["mask"], "mask"), c.tensor(), c.tensor()))
    x, mask = (c.op("Expand", v, shape) for v in (c.tensor(), c.value(c["mask"], "mask")))
    return c.op("Compress", c.op("Reshape", x, [-1]), c.op("Reshape", mask, [-1]), axis=0)


@emits("tril")
def _tril(c: Call) -> ir.Value:
    return _triangle(c, upper=False)


@emits("triu")
def _triu(c: Call) -> ir.Value:
    return _triangle(c, upper=True)


def _triangle(c: Call, *, upper: bool) -> ir.Value:
    offset = int(c.static("diagonal"))
    if c.opset >= 14:
        return c.op("Trilu", c.tensor(), c.builder.number(offset, torch.int64), upper=int(upper))
    rows, columns = static_sizes(c.spec().shape[-2:], "the matrix")
    ones = torch.ones(rows, columns, dtype=torch.bool)
    kept = ones.triu(offset) if upper else ones.tril(offset)
    return c.op("Where", c.builder.constant(kept), c.tensor(), c.number(0))


@emits("diagonal")
def _diagonal(c: Call) -> ir.Value:
    shape = c.spec().shape
    rank, offset = len(shape), int(c.static("offset"))
    first, second = (int(c.static(n)) % rank for n in ("dim1", "dim2"))
    rows, columns = static_sizes([shape[first], shape[second]], "the matrix")
    outer = [i for i in range(rank) if i not in (first, second)]
    x = c.op("Transpose", c.tensor(), perm=[*outer, first, second])
    x = c.reshape(x, [*(shape[i] for i in outer), rows * columns], c.held("input"))
    order = torch.arange(rows * columns).view(rows, columns).diagonal(offset)
    return c.op("Gather", x, c.builder.constant(order), axis=len(outer))


@emits("embedding")
def _embedding(c: Call) -> ir.Value:
    """Rows of a table; of a quantized one they are gathered as integers and dequantized then.

    The other way round the runtime dequantizes the whole table in every run.
    """
    table = c.table("weight")
    if table is None:
        return c.op("Gather", c.parameter("weight"), c.tensor(), axis=0)
    stored, values = table
    grid = values.grid
    if int(grid.dtype.bitwidth) < 8:  # of which ONNX gathers nothing: all of it is dequantized
        whole = c.op("DequantizeLinear", stored, values.scale, values.zero_point,
                     axis=grid.axis, block_size=grid.block)  # fmt: skip
        return c.op("Gather", whole, c.tensor(), axis=0)
    if grid.block is not None:
        msg = "a table that is quantized in blocks"
        raise UnsupportedError(msg)
    rows = c.builder.main(c.op("Gather", stored, c.tensor(), axis=0))
    if grid.axis != 0:
        axis = None if grid.axis is None else c.spec().rank
        return c.op("DequantizeLinear", rows, values.scale, values.zero_point, axis=axis)
    # one scale a row: DequantizeLinear has no form for it
    scale = c.unsqueeze(c.op("Gather", values.scale, c.tensor(), axis=0), [-1])
    return c.op("Mul", _centred(c, rows, values), scale)


def _centred(c: Call, rows: ir.Value, values: QuantParamValues) -> ir.Value:
    """Gathered integers minus the zero points of their rows, as real numbers.

    A DequantizeLinear of step one, not a Cast: a table that becomes unsigned for a product, too,
    takes the zero point along.
    """
    none = c.builder.initializer(ir.Tensor(np.zeros((), values.grid.dtype.numpy())),
                                 f"{c.path}.rows_zero_point")  # fmt: skip
    real = c.op("DequantizeLinear", rows, c.number(1.0, torch.float32), none)
    if not values.grid.zero_point.any():
        return real
    zeros = c.unsqueeze(c.op("Gather", values.zero_point, c.tensor(), axis=0), [-1])
    return c.op("Sub", real, c.op("Cast", zeros, to=ir.DataType.FLOAT))
