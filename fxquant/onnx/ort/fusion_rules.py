"""Why onnxruntime runs an operator of a QDQ graph in floating point: the rules by which it fuses.

The rules were found by dumping the optimized graphs of many small models; onnxruntime itself says
nothing about a group that misses one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fxquant.onnx.qdq import PRODUCTS, Trait, constant, data_operands, grid_range, operators
from fxquant.onnx.qparams import are_columns

# operators that onnxruntime's CPU provider has an integer kernel for, and those that sum products
_CAPABLE = operators(Trait.KERNEL)
SUMS = PRODUCTS & _CAPABLE
_MOVES = operators(Trait.MOVES | Trait.CHOOSES)
_ACTIVATIONS = frozenset(("Relu", "Clip"))
_BYTES = frozenset((ir.DataType.INT8, ir.DataType.UINT8))
_WORDS = frozenset((ir.DataType.INT16, ir.DataType.UINT16))
_BYTES_ONLY = operators(Trait.BYTES) - operators(Trait.WORDS)
_FOLLOW = 8  # nodes between a weight's DequantizeLinear and its consumer


def reason(node: ir.Node) -> str:
    """Why onnxruntime runs an operator of a QDQ graph in floating point."""
    if node.op_type == "MatMulNBits":
        return "its weight alone is stored as integers"
    if node.op_type not in _CAPABLE:
        return _absorbable(node) or f"onnxruntime's CPU provider has no integer {node.op_type}"
    return _input_reason(node) or _output_reason(node) or _other_reason(node)


def _absorbable(node: ir.Node) -> str:
    """Relu and Clip have no kernel, they vanish into their producer's."""
    producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if node.op_type not in _ACTIVATIONS or producer is None:
        return ""
    if producer.op_type == "DequantizeLinear":
        return f"a {node.op_type} has no kernel of its own"
    found = _kept_activation(producer.outputs[0])
    return found or f"its producer {producer.op_type} runs in floating point"


def _kept_activation(value: ir.Value) -> str:
    """Why an activation behind `value` is not redundant, if there is one that is not."""
    chain: list[ir.Node] = []
    users = value.consumers()
    while len(users) == 1 and users[0].op_type in _ACTIVATIONS:
        chain.append(users[0])
        users = users[0].outputs[0].consumers()
    if not chain:
        return ""
    quantizers = [user for user in users if user.op_type == "QuantizeLinear"]
    if not quantizers:
        return f"its output is not quantized behind the {chain[-1].op_type}"
    reasons = (_not_redundant(activation, quantizers[0]) for activation in chain)
    return next((text for text in reasons if text), "")


def _not_redundant(activation: ir.Node, quantizer: ir.Node) -> str:
    low, high = grid_range(quantizer)
    scale = constant(quantizer.inputs[1])
    zero = constant(quantizer.inputs[2]) if len(quantizer.inputs) > 2 else None
    at = int(zero.reshape(-1)[0]) if zero is not None else 0
    if activation.op_type == "Relu":
        if at == low:
            return ""
        return f"the zero point {at} is not the smallest integer {low}: the Relu is not redundant"
    least, most = (constant(v) for v in (*activation.inputs[1:3], None, None)[:2])
    step = float(scale.reshape(-1)[0]) if scale is not None else 0.0
    cuts = (least is not None and float(least) > (low - at) * step) or (
        most is not None and float(most) < (high - at) * step
    )
    return (
        f"a Clip cuts off integers of the grid {low} to {high}: it is not redundant" if cuts else ""
    )


def _input_reason(node: ir.Node) -> str:
    operands = [v for v in node.inputs[:2] if v is not None]
    if node.op_type not in ("Add", "Mul", "MatMul"):
        operands = data_operands(node)
    for value in operands:
        if _dequantizer(value) is None:
            return _float_operand(node, value)
    if node.op_type in SUMS:
        return _weight_reason(node)
    return _width_reason(node, operands)


def _float_operand(node: ir.Node, value: ir.Value) -> str:
    if constant(value) is not None:
        return "its constant operand is floating point"
    producer = value.producer()
    if producer is None:
        return "its operand is a floating-point input of the model"
    if node.op_type == "Add" and producer.op_type == "MatMul":
        return (
            "a bias that onnxruntime did not join with its MatMul: sizes are dynamic, or no int32"
        )
    return f"its operand is floating point, made by {producer.op_type}"


def _weight_reason(node: ir.Node) -> str:
    weight = node.inputs[1]
    source = _dequantizer(weight) if weight is not None else None
    if source is None:
        return "its weight is floating point"
    if _integer_type(source) not in _BYTES:
        return f"its weight is {_type_name(source)}; integer kernels take 8 bits"
    if "block_size" in source.attributes and not _by_columns(node, source):
        return "its weight has scales for blocks; integer kernels take one a channel"
    return _width_reason(node, node.inputs[:1]) or _bias_reason(node)


def _by_columns(node: ir.Node, source: ir.Node) -> bool:
    """Whether a block of a product's second operand is a column of one of its matrices."""
    scale = constant(source.inputs[1])
    if node.op_type != "MatMul" or scale is None:
        return False
    return are_columns(scale.shape, source.attributes.get_int("axis", 1))


def _width_reason(node: ir.Node, operands: Sequence[ir.Value | None]) -> str:
    if node.op_type in _MOVES:
        return ""
    for value in operands:
        source = _dequantizer(value) if value is not None else None
        if source is not None and _integer_type(source) not in _BYTES:
            return f"its input is {_type_name(source)}; integer kernels take 8 bits"
    return ""


def _bias_reason(node: ir.Node) -> str:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return ""
    source = _dequantizer(bias)
    if source is None:
        return "its bias is floating point" if not _quantizers(node.outputs[0]) else ""
    return (
        "" if _bias_scale_fits(node) else "the scale of its bias is not input scale × weight scale"
    )


def _bias_scale_fits(node: ir.Node, *, tolerance: float = 0.01) -> bool:
    """Whether the int32 bias of a Conv or Gemm lies on the grid that its integer kernel adds on.

    onnxruntime checks it (to 1 %) for Conv alone; for Gemm a wrong scale is used in silence.
    """
    scales = [
        constant(d.inputs[1]) if d is not None else None for d in map(_dequantizer, node.inputs[:3])
    ]
    x, w, b = scales if len(scales) == 3 else (None, None, None)
    if x is None or w is None or b is None:
        return True
    return bool(np.allclose(b.reshape(-1), (x * w).reshape(-1), rtol=tolerance, atol=0.0))


def _output_reason(node: ir.Node) -> str:
    output = node.outputs[0]
    if output.is_graph_output() and node.op_type not in ("Gemm", "MatMul"):
        return "its float output is an output of the model"
    users = output.consumers()
    quantizers = _quantizers(output)
    needs = node.op_type not in ("Gemm", "MatMul", "ArgMax")
    if len(quantizers) > 1 and len({_parameters(q) for q in quantizers}) > 1:
        return f"its output is quantized in {len(quantizers)} different ways"
    if quantizers and len(users) > len(quantizers):
        others = sorted({u.op_type for u in users if u not in quantizers})
        return f"its output is quantized and also read as float by {', '.join(others)}"
    if needs and not quantizers:
        return _kept_activation(output) or "its output is not quantized"
    return ""


def _other_reason(node: ir.Node) -> str:
    source = _dequantizer(data_operands(node)[0])
    wide = _type_name(source) if source is not None and _integer_type(source) in _WORDS else ""
    if wide and node.op_type in _BYTES_ONLY:
        return f"its input is {wide}; its integer kernel takes 8 bits"
    if node.op_type in _MOVES and not _same_grid(node):
        return "its output has another grid than its input"
    if source is not None and _integer_type(source) is ir.DataType.INT8:
        return "int8 activations that several operators read are not fused on x86; use uint8"
    if node.op_type == "Resize":
        return "only nearest-neighbour resizing runs on integers"
    return "onnxruntime did not fuse it"


def _same_grid(node: ir.Node) -> bool:
    source = _dequantizer(data_operands(node)[0])
    quantizers = _quantizers(node.outputs[0])
    return source is None or not quantizers or _parameters(source) == _parameters(quantizers[0])


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear behind a value, through Transpose and Reshape of weights."""
    node = value.producer() if value is not None else None
    for _ in range(_FOLLOW):
        if node is None or node.op_type == "DequantizeLinear":
            return node
        if node.op_type not in ("Transpose", "Reshape") or node.inputs[0] is None:
            return None
        node = node.inputs[0].producer()
    return None


def _quantizers(value: ir.Value) -> list[ir.Node]:
    return [node for node in value.consumers() if node.op_type == "QuantizeLinear"]


def _parameters(node: ir.Node) -> tuple[bytes, ...]:
    """Scale and zero point of a Q or DQ node, comparable."""
    arrays = (constant(value) for value in node.inputs[1:3])
    return tuple(b"" if array is None else array.tobytes() for array in arrays)


def _integer_type(dequantize: ir.Node) -> ir.DataType | None:
    for value in (
        _gathered(dequantize.inputs[0]) if dequantize.inputs[0] is not None else None,
        dequantize.inputs[2] if len(dequantize.inputs) > 2 else None,
    ):
        if value is not None and value.const_value is not None:
            return value.const_value.dtype
        if value is not None and value.dtype is not None:
            return value.dtype
    return None


def _type_name(dequantize: ir.Node) -> str:
    found = _integer_type(dequantize)
    return found.name.lower() if found is not None else "of unknown type"


def _gathered(value: ir.Value) -> ir.Value:
    """The table that rows are taken from: they are of its type."""
    node = value.producer()
    table = node.inputs[0] if node is not None and node.op_type == "Gather" else None
    return value if table is None else table
