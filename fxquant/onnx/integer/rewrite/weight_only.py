"""Products of floats with stored integers: the runtime quantizes the *activation*, too.

At its default accuracy level the kernel (MatMulNBits) rounds each block of the activation to int8
while it runs. There is no formula to follow here: the product and the DequantizeLinear of its
weight run together in onnxruntime.
"""

from __future__ import annotations

import onnx_ir as ir

from fxquant.onnx.integer.kernels.kernel_graph import (
    NodeQuantParams,
    attribute,
    constant,
    consumers,
    dtype_of,
    grid_of,
    is_dequantize,
    is_quantize,
    only_consumer,
    sizes,
)

KERNEL = "MatMulNBits"
_STORED = frozenset(
    (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8)
)  # fmt: skip
_LEAST_BLOCK = 16


def stored_weight(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear of the weight, where onnxruntime makes one kernel of both."""
    if node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    value = node.inputs[1]
    weight = value.producer() if value is not None else None
    if value is None or weight is None or not is_dequantize(weight):
        return None
    if only_consumer(value) is not node or not _others_are_float(node) or not _is_bare(node):
        return None
    return weight if _fits(weight) else None


def _others_are_float(node: ir.Node) -> bool:
    """Whether the activation is float, and the product a plain one with a stored bias."""
    first = node.inputs[0].producer() if node.inputs[0] is not None else None
    if is_dequantize(first):
        return False
    if node.op_type == "MatMul":
        return True
    plain = not (attribute(node, "transA", 0) or attribute(node, "transB", 0))
    ones = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(bias)
    return plain and ones and (bias is None or (array is not None and array.ndim == 1))


def _is_bare(node: ir.Node) -> bool:
    """Whether neither a quantizer nor one behind an activation reads the result."""
    behind = consumers(node.outputs[0])
    if len(behind) == 1 and behind[0].op_type in ("Relu", "Clip"):
        return False
    return not any(is_quantize(r) for r in behind)


def _fits(weight: ir.Node) -> bool:
    """Whether grid and layout are those that the kernel takes."""
    shape, grid = sizes(weight.inputs[0]), grid_of(weight)
    if constant(weight.inputs[0]) is None or grid is None or shape is None or len(shape) != 2:
        return False
    if dtype_of(weight.inputs[0]) not in _STORED:
        return False
    block = attribute(weight, "block_size", 0)
    if block:
        power = block >= _LEAST_BLOCK and not block & (block - 1)
        return bool(power and attribute(weight, "axis", 1) == 0 and grid.scale.ndim == 2)
    return _whole_columns(grid, shape[1], attribute(weight, "axis", 1))


def _whole_columns(grid: NodeQuantParams, columns: int | None, axis: int) -> bool:
    if grid.scale.ndim == 0:
        return not grid.explicit or grid.zero.ndim == 0
    alike = grid.scale.ndim == 1 and grid.scale.size == columns and axis == 1
    return alike and (not grid.explicit or grid.zero.shape == grid.scale.shape)
