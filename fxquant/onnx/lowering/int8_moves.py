"""Moves int8 values as integers wherever onnxruntime would put a pair of its own behind the move.

Before: `DequantizeLinear (int8) -> Unsqueeze -> MatMul`.
After:  `Unsqueeze (of int8) -> DequantizeLinear (int8) -> MatMul`.

onnxruntime moves a DequantizeLinear forward through such an operator: it adds a QuantizeLinear and
a DequantizeLinear behind it, and then turns int8 pairs with one consumer unsigned. From opset 21 on
its new QuantizeLinear keeps the attribute that says int8, and the session cannot be created. Where
the integers themselves are moved there is nothing to add. An operator whose only consumers are
QuantizeLinear stays as it is: onnxruntime drops both sides of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from fxquant.onnx.qdq import Trait, operators

if TYPE_CHECKING:
    from fxquant.onnx.lowering.builder import Builder

_CARRIES = operators(Trait.CARRIES)


def move_int8(builder: Builder, outputs: list[ir.Value]) -> dict[ir.Node, ir.Node]:
    """Change every such operator; the nodes that are no longer read stay behind.

    Args:
        builder: the graph; nodes are inserted in place.
        outputs: what the graph returns; values that are made anew take their places.

    Returns:
        New node -> the operator that it stands for.
    """
    made: dict[ir.Node, ir.Node] = {}
    nodes: list[ir.Node] = []
    for node in list(builder.nodes):
        nodes.append(node)
        pair = _dequantized(node)
        if pair is None or not _is_read_as_real(node, outputs):
            continue
        for new in _moved(builder, node, pair, outputs):
            made[new] = node
            nodes.append(new)
    builder.nodes[:] = nodes
    return made


def _dequantized(node: ir.Node) -> ir.Node | None:
    """The int8 DequantizeLinear, with one scale, that an operator moves the result of."""
    value = node.inputs[0] if node.op_type in _CARRIES and len(node.outputs) == 1 else None
    pair = value.producer() if value is not None else None
    if pair is None or pair.op_type != "DequantizeLinear" or len(pair.inputs) < 3:
        return None
    scale, zero = (v.const_value if v is not None else None for v in pair.inputs[1:3])
    if scale is None or zero is None or scale.size != 1:
        return None
    return pair if zero.dtype is ir.DataType.INT8 else None


def _is_read_as_real(node: ir.Node, outputs: list[ir.Value]) -> bool:
    result = node.outputs[0]
    return result in outputs or any(n.op_type != "QuantizeLinear" for n in result.consumers())


def _moved(
    builder: Builder, node: ir.Node, pair: ir.Node, outputs: list[ir.Value]
) -> tuple[ir.Node, ir.Node]:
    """The operator on integers and the DequantizeLinear behind it."""
    old, first = node.outputs[0], len(builder.nodes)
    attributes: Any = list(node.attributes.values())
    move = ir.Node("", node.op_type, [pair.inputs[0], *node.inputs[1:]], attributes)
    builder.nodes.append(move)
    real = builder.op("DequantizeLinear", move.outputs[0], *pair.inputs[1:])
    made = builder.nodes[first:]
    builder.name_node(made[0], f"{node.name}_q")
    builder.name_node(made[1], f"{node.name}_dq")
    real.shape, real.type = old.shape, old.type
    for use in list(old.uses()):
        if use.node.op_type != "QuantizeLinear":
            use.node.replace_input_with(use.idx, real)
    for i, value in enumerate(outputs):
        if value is old:
            outputs[i] = real
            real.name, old.name = old.name, real.name
    return made[0], made[1]
