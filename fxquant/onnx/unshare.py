"""An int8 weight of its own for every product that reads one.

Before: `Conv, Conv <- DequantizeLinear <- weight`
After:  `Conv <- DequantizeLinear <- weight` and `Conv <- DequantizeLinear <- weight_1`

onnxruntime's session option `session.x64quantprecision=1` makes int8 weights unsigned when a file
is loaded, so that CPUs without VNNI compute exactly. It refuses files in which two kernels share a
weight or a zero point: it would replace the same initializer twice. What else reads a weight, such
as a Gather of its rows, keeps reading the first one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import onnx_ir as ir

from fxquant.onnx.builder import unique
from fxquant.onnx.reasons import SUMS

_Way: TypeAlias = tuple[ir.Node, ...]
_Use: TypeAlias = tuple[ir.Node, int]  # a node and which of its inputs


def unshare_weights(graph: ir.Graph) -> int:
    """Give products that share a weight their own copies, in place.

    Args:
        graph: a QDQ graph.

    Returns:
        Bytes of weights that the copies add.
    """
    taken = {value.name for node in graph for value in node.outputs if value.name}
    taken |= set(graph.initializers) | {n.name for n in graph if n.name}
    read: set[ir.Value] = set()  # weights that have their product
    added = 0
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.const_value is None or weight.dtype is not ir.DataType.INT8:
            continue
        for way, use in list(_products(node)):
            if weight in read:
                _unshare(graph, way, use, taken)
                added += weight.const_value.nbytes
            read.add(weight)
    return added


def _products(node: ir.Node, way: _Way = ()) -> Iterator[tuple[_Way, _Use]]:
    """Operands of products, and the nodes from the DequantizeLinear to each of them."""
    way = (*way, node)
    for use in node.outputs[0].uses():
        if use.node.op_type in SUMS:
            yield way, (use.node, use.idx)
        elif use.node.op_type == "Transpose":
            yield from _products(use.node, way)


def _unshare(graph: ir.Graph, way: _Way, use: _Use, taken: set[str]) -> None:
    """A weight and a zero point for one product, in nodes of its own."""
    dequantizer, *moves = way
    scale = dequantizer.inputs[1]
    inputs = [_copied(graph, v, taken) if v is not scale else v for v in dequantizer.inputs]
    if all(_has_one_reader(node.outputs[0]) for node in way):
        for i, value in enumerate(inputs):
            dequantizer.replace_input_with(i, value)
        return
    copy = _copy(graph, dequantizer, inputs, taken)
    for move in moves:
        copy = _copy(graph, move, copy.outputs, taken)
    product, position = use
    product.replace_input_with(position, copy.outputs[0])


def _has_one_reader(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _copy(
    graph: ir.Graph, node: ir.Node, inputs: Sequence[ir.Value | None], taken: set[str]
) -> ir.Node:
    """A node that does the same with other inputs, right behind the given one."""
    copy = ir.node(node.op_type, inputs, node.attributes, name=unique(str(node.name), taken))
    made, given = copy.outputs[0], node.outputs[0]
    made.name, made.shape, made.type = unique(str(given.name), taken), given.shape, given.type
    graph.insert_after(node, copy)
    return copy


def _copied(graph: ir.Graph, value: ir.Value | None, taken: set[str]) -> ir.Value | None:
    if value is None or value.const_value is None:
        return value
    name = unique(str(value.name), taken)
    data = ir.Tensor(value.const_value.numpy(), value.const_value.dtype, name=name)
    copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=data)
    graph.register_initializer(copy)
    return copy
