"""Puts the number that scales a product of activations into a step of one of its operands.

Before: `DequantizeLinear (step s) -> MatMul -> Mul (by c)`.
After:  `DequantizeLinear (step s · c) -> MatMul`.

The attention scores are such a product. They are the largest tensor of a layer, stay in floating
point for the softmax, and the multiplication reads and writes all of them; in the step it is free,
because the integer kernel multiplies its sums by the steps anyway. For a power of two nothing is
rounded differently, for another number the last bit of a float may be.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from fxquant.onnx.builder import Builder


def fold_scales(builder: Builder, outputs: Collection[ir.Value]) -> dict[ir.Node, ir.Node]:
    """Change every such product in place; the nodes that are no longer read stay behind.

    Args:
        builder: the graph.
        outputs: what the graph returns; these values are left as they are.

    Returns:
        New DequantizeLinear -> the MatMul that reads it.
    """
    made: dict[ir.Node, ir.Node] = {}
    for node in builder.nodes:
        product = _product(node)
        if product is None or {*node.outputs, *product.outputs} & set(outputs):
            continue
        factor, pair = _factor(node), _dequantized(product.inputs[1])
        if factor is None or pair is None or _dequantized(product.inputs[0]) is None:
            continue
        made[_scaled(builder, pair, product, factor)] = product
        result, free = product.outputs[0], node.outputs[0]
        free.replace_all_uses_with(result)
        result.name, free.name = free.name, result.name
    before = {product: new for new, product in made.items()}
    builder.nodes[:] = [
        n for node in builder.nodes if node not in made for n in (before.get(node), node) if n
    ]
    return made


def _product(node: ir.Node) -> ir.Node | None:
    """The MatMul whose result only this product or quotient with a number reads."""
    if node.op_type not in ("Mul", "Div"):
        return None
    value = node.inputs[0]
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "MatMul" or len(maker.outputs[0].uses()) > 1:
        return None
    # what is quantized keeps the name of its float value
    quantized = any(use.op_type == "QuantizeLinear" for use in node.outputs[0].consumers())
    return None if quantized else maker


def _factor(node: ir.Node) -> float | None:
    """What the product is multiplied by, if it is a positive number."""
    value = node.inputs[1]
    tensor = value.const_value if value is not None else None
    if tensor is None or tensor.size != 1 or tensor.dtype != ir.DataType.FLOAT:
        return None
    number = float(tensor.numpy().reshape(()))
    if not (np.isfinite(number) and number > 0):
        return None
    return 1 / number if node.op_type == "Div" else number


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of an activation with one step for the whole tensor."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    integers, step = (v.const_value if v is not None else None for v in node.inputs[:2])
    return node if integers is None and step is not None and step.size == 1 else None


def _scaled(builder: Builder, pair: ir.Node, product: ir.Node, factor: float) -> ir.Node:
    step = pair.inputs[1]
    if step is None or step.const_value is None:  # `_dequantized` has looked
        msg = "the pair lost its step"
        raise RuntimeError(msg)
    scaled = np.asarray(step.const_value.numpy().astype(np.float64) * factor, np.float32)
    name = f"{product.name}.scaled"
    new = builder.initializer(ir.Tensor(scaled), f"{name}_scale")
    value = builder.op("DequantizeLinear", pair.inputs[0], new, *pair.inputs[2:])
    value.shape, value.type = pair.outputs[0].shape, pair.outputs[0].type
    node = builder.nodes.pop()
    builder.name_node(node, f"{name}_dq")
    product.replace_input_with(1, value)
    return node
