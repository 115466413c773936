"""Pairs of QuantizeLinear and DequantizeLinear: one for each consumer, merged, and moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.onnx.integer.kernels.kernel_graph import (
    NodeQuantParams,
    add_constant,
    constant,
    describe,
    discard,
    grid_of,
    is_dequantize,
    is_quantize,
    only_consumer,
    ordered,
    present,
)
from fxquant.onnx.qdq import Trait, operators

_CARRIES = operators(Trait.CARRIES)


def separate_dequantizers(graph: ir.Graph) -> None:
    """Give every consumer its own DequantizeLinear."""
    for node in ordered(graph):
        if not is_dequantize(node):
            continue
        uses = list(node.outputs[0].uses())
        keep = 0 if node.outputs[0].is_graph_output() else 1
        for count, use in enumerate(uses[keep:], 1):
            copy = ir.node(
                "DequantizeLinear", list(node.inputs), {}, domain=node.domain,
                name=f"{node.name}/{count}",
            )  # fmt: skip
            for attr in node.attributes.values():
                copy.attributes.add(attr)
            copy.outputs[0].name = f"{node.outputs[0].name}/{count}"
            describe(copy.outputs[0], node.outputs[0])
            graph.insert_after(node, copy)
            use.node.replace_input_with(use.idx, copy.outputs[0])


def merge_double_pairs(graph: ir.Graph) -> None:
    """`Q1 -> DQ1 -> Q2 -> DQ2` becomes one pair on the grid that both cover."""
    for node in ordered(graph):
        chain = _double_pair(node)
        if chain is None:
            continue
        first, _, second, last = chain
        grids = [grid_of(n) for n in chain]
        a, b = grids[0], grids[2]
        if a is None or b is None or any(g is None for g in grids):
            continue
        if not (a.equals(_sure(grids[1])) and b.equals(_sure(grids[3]))) or a.dtype is not b.dtype:
            continue
        if a.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
            continue
        last.replace_input_with(0, first.outputs[0])
        discard(second, node)
        if not a.equals(b):
            _set_grid(graph, (first, last), *_common_grid(a, b))


def _sure(grid: NodeQuantParams | None) -> NodeQuantParams:
    if grid is None:
        msg = "a grid is missing"
        raise RuntimeError(msg)
    return grid


def _double_pair(node: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node, ir.Node] | None:
    """The four nodes around an inner DequantizeLinear."""
    if not is_dequantize(node) or node.inputs[0] is None:
        return None
    first, second = node.inputs[0].producer(), only_consumer(node.outputs[0])
    if first is None or second is None or not is_quantize(first) or not is_quantize(second):
        return None
    last = only_consumer(second.outputs[0])
    if only_consumer(first.outputs[0]) is not node or last is None or not is_dequantize(last):
        return None
    return first, node, second, last


def _common_grid(
    a: NodeQuantParams, b: NodeQuantParams
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    dtype = a.zero.dtype
    low, high = np.float32(np.iinfo(dtype).min), np.float32(np.iinfo(dtype).max)
    edges = [
        ((low - np.float32(g.zero.item())) * g.scale, (high - np.float32(g.zero.item())) * g.scale)
        for g in (a, b)
    ]
    bottom, top = max(e[0] for e in edges), min(e[1] for e in edges)
    scale = np.asarray((top - bottom) / np.float32(high - low), np.float32)
    zero = low - bottom / scale
    rounded = np.trunc(zero + np.copysign(np.float32(0.5), zero))  # away from zero, as C rounds
    return scale, np.array(rounded).astype(dtype)


def _set_grid(
    graph: ir.Graph, nodes: Sequence[ir.Node], scale: NDArray[np.float32], zero: NDArray[Any]
) -> None:
    name = f"{nodes[0].name}/merged"
    values = (
        add_constant(graph, f"{name}_scale", np.asarray(scale, np.float32).reshape(())),
        add_constant(graph, f"{name}_zero_point", np.asarray(zero).reshape(())),
    )
    for node in nodes:
        for i, value in enumerate(values, 1):
            node.replace_input_with(i, value)


def move_quantizers(graph: ir.Graph) -> None:
    """Put a pair on both sides of operators that only move values."""
    nodes = list(ordered(graph))
    for node in nodes:
        if is_quantize(node):
            _move_backward(graph, node)
    for node in list(ordered(graph)):
        if is_dequantize(node):
            _move_forward(graph, node)


def _scalar_grid(node: ir.Node) -> bool:
    grid = grid_of(node)
    return grid is not None and grid.single


def _move_backward(graph: ir.Graph, quantize: ir.Node) -> None:
    """`MaxPool -> Q` becomes `Q -> DQ -> MaxPool -> Q`."""
    if not _scalar_grid(quantize):
        return
    value = quantize.inputs[0]
    while value is not None and (mover := _mover(value)) is not None:
        value = mover.inputs[0]
        source = value.producer() if value is not None else None
        if value is None or only_consumer(value) is not mover or constant(value) is not None:
            return
        if is_dequantize(source):
            return
        _insert_pair(graph, quantize, value, [(mover, 0)])


def _mover(value: ir.Value) -> ir.Node | None:
    """The operator that only moved this value, if its one consumer is on the way."""
    node = value.producer()
    if node is None or node.op_type not in _CARRIES or value.is_graph_output():
        return None
    return node if len(value.uses()) == 1 and len(present(node.outputs)) == 1 else None


def _move_forward(graph: ir.Graph, dequantize: ir.Node) -> None:
    """`DQ -> Reshape` becomes `DQ -> Reshape -> Q -> DQ`."""
    mover = only_consumer(dequantize.outputs[0])
    if (
        mover is None
        or not _scalar_grid(dequantize)
        or mover.inputs[0] is not dequantize.outputs[0]
    ):
        return
    pending = [mover]
    while pending:
        node = pending.pop()
        value = node.outputs[0]
        if node.op_type not in _CARRIES or value.is_graph_output():
            continue
        uses = [(u.node, u.idx) for u in value.uses() if not is_quantize(u.node)]
        if uses:
            _insert_pair(graph, dequantize, value, uses)
            pending += [user for user, index in uses if index == 0]


def _insert_pair(
    graph: ir.Graph, like: ir.Node, value: ir.Value, uses: list[tuple[ir.Node, int]]
) -> None:
    """A Q behind a value, and a DQ of its own in front of each of these consumers."""
    grid, inputs = grid_of(like), list(like.inputs[1:3])
    quantize = ir.node("QuantizeLinear", [value, *inputs], name=f"{value.name}/q")
    if grid is not None and not grid.explicit:  # nothing else tells the type
        quantize.attributes.add(ir.AttrInt64("output_dtype", int(grid.dtype)))
    quantize.outputs[0].name = f"{value.name}/q"
    describe(quantize.outputs[0], value, grid.dtype if grid is not None else None)
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, quantize)
    else:
        graph.insert_before(next(iter(graph)), quantize)
    for count, (consumer, index) in enumerate(uses):
        made = ir.node(
            "DequantizeLinear", [quantize.outputs[0], *inputs], name=f"{value.name}/dq{count}"
        )
        made.outputs[0].name = f"{value.name}/dq{count}"
        describe(made.outputs[0], value)
        graph.insert_after(quantize, made)
        consumer.replace_input_with(index, made.outputs[0])
