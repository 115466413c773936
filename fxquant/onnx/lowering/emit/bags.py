"""Bags of rows of a table: their sum, mean or maximum."""

from __future__ import annotations

import onnx_ir as ir
import torch

from fxquant.onnx.lowering.context import Call, UnsupportedError
from fxquant.onnx.lowering.emitters import emits


@emits("embedding_bag")
def _embedding_bag(c: Call) -> ir.Value:
    """Rows are gathered, then reduced: along an axis, or by a table of which word is in which bag.

    torch's exporter takes the bags of the example for those of every input.
    """
    if c["max_norm"] is not None:
        msg = "it scales rows of its table in place"
        raise UnsupportedError(msg)
    weight = c.parameter("weight")
    rows = c.op("Gather", weight, c.tensor(), axis=0)
    inside = _words_of_bags(c) if c.spec().rank == 1 else None
    if inside is not None:
        rows = c.unsqueeze(rows, [0])  # [1, W, C] beside [N, W]
    if c["per_sample_weights"] is not None:
        weights = c.unsqueeze(c.value(c["per_sample_weights"], "per_sample_weights"), [-1])
        rows = c.op("Mul", rows, weights)
    return _reduced(c, rows, _both(c, inside, _no_padding(c)))


def _words_of_bags(c: Call) -> ir.Value:
    """Of flat words: whether a bag [N] holds a word [W], a bool [N, W]."""
    offsets = c.value(c["offsets"], "offsets", torch.int64)
    count = c.op("Shape", c.tensor())
    if c["include_last_offset"]:
        begins, ends = c.slice(offsets, 0, 0, -1), c.slice(offsets, 0, 1)
    else:
        begins, ends = offsets, c.op("Concat", c.slice(offsets, 0, 1), count, axis=0)
    zero, one = (c.number(i, torch.int64) for i in (0, 1))
    places = c.op("Range", zero, c.op("Squeeze", count, [0]), one)
    before = c.op("Less", places, c.unsqueeze(begins, [1]))
    return c.op("And", c.op("Not", before), c.op("Less", places, c.unsqueeze(ends, [1])))


def _no_padding(c: Call) -> ir.Value | None:
    """Which words count, a bool in the shape of the input; None if all do."""
    padding = c["padding_idx"]
    if padding is None:
        return None
    return c.op("Not", c.op("Equal", c.tensor(), c.number(padding, c.spec().dtype)))


def _both(c: Call, a: ir.Value | None, b: ir.Value | None) -> ir.Value | None:
    return c.op("And", a, b) if a is not None and b is not None else a if b is None else b


def _reduced(c: Call, rows: ir.Value, kept: ir.Value | None) -> ir.Value:
    """[N, W, C] -> [N, C]; of nothing it is zero."""
    mode, dtype = c.static("mode"), c.out.dtype
    if kept is None:
        kinds = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax"}
        return c.builder.main(c.reduce(kinds[mode], rows, [1]))
    chosen, zero = c.unsqueeze(kept, [-1]), c.number(0.0, dtype)
    count = c.reduce("ReduceSum", c.cast(kept, torch.bool, dtype), [1], keepdim=True)
    if mode == "max":
        low = c.number(torch.finfo(dtype).min, dtype)
        best = c.builder.main(c.reduce("ReduceMax", c.op("Where", chosen, rows, low), [1]))
        return c.op("Where", c.op("Greater", count, zero), best, zero)
    total = c.builder.main(c.reduce("ReduceSum", c.op("Where", chosen, rows, zero), [1]))
    if mode == "sum":
        return total
    return c.op("Div", total, c.op("Max", count, c.number(1.0, dtype)))
