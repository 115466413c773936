"""What a file needs so that onnxruntime computes it as it is written.

**Floating-point layers stay floating point.**

Before: `DequantizeLinear -> Conv (float weight) -> QuantizeLinear`.
After:  `DequantizeLinear -> Conv (float weight) -> Max -> QuantizeLinear`.

onnxruntime takes the first form for a quantized layer whose weight was forgotten and rounds the
weight to 8 bits (its "WeightBiasQuantization"; up to a fifth of the outputs are then off by a
step). `Max` of one operand is that operand: it copies the tensor, no optimizer removes it, and the
pattern is gone. The same keeps a softmax between integers from QLinearSoftmax, which is slower than
the float softmax and wrong where a probability is one: an axis of one element gives 0, and 254 of
255 steps come out where the others vanish. Identity, a product with one, Expand and an unbounded
Clip are all removed, as are moves of values and activations whose range the grid holds anyway.

The same stands behind 8-bit weights at 16-bit activations, `DequantizeLinear -> Max -> MatMul`:
from 1.32 on onnxruntime makes a MatMulNBits of that product and rounds the activation to 8 bits.

**The number that scales a product of activations goes into a scale of one of its operands.**

Before: `DequantizeLinear (step s) -> MatMul -> Mul (by c)`.
After:  `DequantizeLinear (step s · c) -> MatMul`.

The attention scores are such a product. They are the largest tensor of a layer, stay in floating
point for the softmax, and the multiplication reads and writes all of them; in the step it is free,
because the integer kernel multiplies its sums by the steps anyway. For a power of two nothing is
rounded differently, for another number the last bit of a float may be.

**A sum that a layer norm reads stays a node of its own.**

Before: `Add -> LayerNormalization`.
After:  `Sum -> LayerNormalization`.

onnxruntime fuses the first form to SkipLayerNormalization, which takes several times as long as the
two kernels on CPUs. `Sum` of two operands is computed in the same way, and no fusion knows it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from fxquant.onnx.qdq import PRODUCTS, Trait, operators

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fxquant.onnx.lowering.builder import Builder


# operators through which onnxruntime moves Q and DQ; a Flatten becomes a Reshape elsewhere
_MOVES = operators(Trait.CARRIES | Trait.VANISHES) | {"Flatten"}
# and those that it merges into the layer
_AFTER = _MOVES | {"Relu", "Clip", "BatchNormalization", "Add", "Sub", "Mul", "Div"}
_BEFORE = _MOVES | {"Pad"}


def shield_float_layers(builder: Builder) -> dict[ir.Node, ir.Node]:
    """Put a `Max` wherever onnxruntime would compute a layer on fewer bits than it has here.

    Args:
        builder: the graph; nodes are inserted in place.

    Returns:
        New node -> the QuantizeLinear or MatMul that it stands before.
    """
    exposed = [n for n in builder.nodes if n.op_type == "QuantizeLinear" and _is_exposed(n)]
    made = {_shield(builder, node, 0): node for node in exposed}
    products = [n for n in builder.nodes if n.op_type == "MatMul" and _loses_words(n)]
    made |= {_shield(builder, node, 1): node for node in products}
    before = {after: new for new, after in made.items()}
    builder.nodes[:] = [
        n for node in builder.nodes if node not in made for n in (before.get(node), node) if n
    ]
    return made


def separate_norms(builder: Builder) -> None:
    """Write the sums of floats that layer norms read as `Sum`, in place."""
    for node in builder.nodes:
        value = node.inputs[0] if node.op_type == "LayerNormalization" else None
        add = value.producer() if value is not None else None
        if add is None or value is None or add.op_type != "Add" or _adds_bias(add):
            continue
        if value.dtype is ir.DataType.FLOAT:
            add.op_type = "Sum"


def _adds_bias(add: ir.Node) -> bool:
    """Whether a layer's bias is added: onnxruntime joins that Add with the layer."""
    made = [v.producer() for v in add.inputs if v is not None]
    return any(node is not None and node.op_type in PRODUCTS for node in made)


def _is_exposed(quantize: ir.Node) -> bool:
    return _makes_layer_integer(quantize) or _makes_softmax_integer(quantize)


def _loses_words(product: ir.Node) -> bool:
    """Whether stored bytes are multiplied and operand or result has words."""
    x, weight = (v.producer() if v is not None else None for v in product.inputs[:2])
    if weight is None or weight.op_type != "DequantizeLinear":
        return False
    if weight.inputs[0] is None or weight.inputs[0].const_value is None:
        return False
    behind = product.outputs[0].consumers()
    while len(behind) == 1 and behind[0].op_type in ("Relu", "Clip"):
        behind = behind[0].outputs[0].consumers()
    return any(_has_words(node) for node in (x, *behind))


def _has_words(node: ir.Node | None) -> bool:
    if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return False
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    kind = zero.const_value.dtype if zero is not None and zero.const_value is not None else None
    return kind in (ir.DataType.INT16, ir.DataType.UINT16)


def _makes_softmax_integer(quantize: ir.Node) -> bool:
    softmax = _walk(quantize.inputs[0], _MOVES, {"Softmax"})
    return softmax is not None and _is_dequantized(softmax.inputs[0])


def _makes_layer_integer(quantize: ir.Node) -> bool:
    layer = _walk(quantize.inputs[0], _AFTER, PRODUCTS)
    if layer is None or len(layer.inputs) < 2:
        return False
    # a float bias beside integer weights is rounded to int32 as well
    if all(_is_dequantized(v) for v in layer.inputs[1:] if v is not None):
        return False
    return _walk(layer.inputs[0], _BEFORE, {"DequantizeLinear"}) is not None


def _walk(value: ir.Value | None, through: Iterable[str], to: Iterable[str]) -> ir.Node | None:
    """The producer of a value of one of the kinds, seen through others."""
    through, to = frozenset(through), frozenset(to)
    while value is not None:
        node = value.producer()
        if node is None or node.op_type in to:
            return node
        if node.op_type not in through:
            return None
        # a sum or product with a constant: the other operand
        computed = [v for v in node.inputs if v is not None and v.producer() is not None]
        value = computed[0] if computed else None
    return None


def _is_dequantized(value: ir.Value | None) -> bool:
    return _walk(value, _MOVES, {"DequantizeLinear"}) is not None


def _shield(builder: Builder, consumer: ir.Node, index: int) -> ir.Node:
    given = consumer.inputs[index]
    value = builder.op("Max", given)
    node = value.producer()
    if node is None or given is None:  # cannot be: it was just made from a value
        return consumer
    builder.name_node(node, f"{consumer.name}.float")
    value.shape, value.type = given.shape, given.type
    consumer.replace_input_with(index, value)
    return node


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
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "MatMul" or len(producer.outputs[0].uses()) > 1:
        return None
    # what is quantized keeps the name of its float value
    quantized = any(use.op_type == "QuantizeLinear" for use in node.outputs[0].consumers())
    return None if quantized else producer


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
