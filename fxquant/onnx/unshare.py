"""An int8 weight of its own for every product that reads one.

Before: `Conv, Conv <- DequantizeLinear <- weight`
After:  `Conv <- DequantizeLinear <- weight` and `Conv <- DequantizeLinear <- weight_1`

onnxruntime's session option `session.x64quantprecision=1` makes int8 weights unsigned when a file
is loaded, so that CPUs without VNNI compute exactly. It refuses files in which two kernels share a
weight or a zero point: it would replace the same initializer twice.
"""

from __future__ import annotations

import onnx_ir as ir

from fxquant.onnx.builder import unique
from fxquant.onnx.reasons import SUMS


def unshare_weights(graph: ir.Graph) -> int:
    """Give products that share a weight their own copies, in place.

    Args:
        graph: a QDQ graph.

    Returns:
        Bytes of weights that the copies add.
    """
    taken = {value.name for node in graph for value in node.outputs if value.name}
    taken |= set(graph.initializers) | {n.name for n in graph if n.name}
    added = 0
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.const_value is None or weight.dtype is not ir.DataType.INT8:
            continue
        products = [use for use in node.outputs[0].uses() if use.node.op_type in SUMS]
        for use in products[1:]:
            copy = _copy(graph, node, taken)
            use.node.replace_input_with(use.idx, copy.outputs[0])
            added += weight.const_value.nbytes
    return added


def _copy(graph: ir.Graph, node: ir.Node, taken: set[str]) -> ir.Node:
    """A DequantizeLinear with a weight and a zero point of its own, right behind the given one."""
    scale = node.inputs[1]
    inputs = [_copied(graph, v, taken) if v is not scale else v for v in node.inputs]
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
