"""Floating-point weights and biases that onnxruntime quantizes itself (in silence)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.onnx.integer.kernels.arithmetic import quantize
from fxquant.onnx.integer.kernels.kernel_graph import (
    add_constant,
    attribute,
    constant,
    describe,
    grid_of,
    is_dequantize,
    is_quantize,
    only_consumer,
    ordered,
    sizes,
)


def quantize_weights(graph: ir.Graph) -> None:
    """Float weights and biases between a DQ and a Q become integers, per tensor (trap T4)."""
    for node in ordered(graph):
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or not _leads_to_quantizer(node):
            continue
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None or not is_dequantize(source) or not _is_single(source):
            continue
        _quantize_operands(graph, node, source)


def _leads_to_quantizer(node: ir.Node) -> bool:
    for _ in range(1000):
        consumer = only_consumer(node.outputs[0])
        if consumer is None or consumer.op_type not in ("QuantizeLinear", "Relu", "Clip"):
            return False
        if is_quantize(consumer):
            return True
        node = consumer
    return False


def _quantize_operands(graph: ir.Graph, node: ir.Node, source: ir.Node) -> None:
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(bias)
    if weight is None or (bias is not None and (array is None or array.ndim != 1)):
        return
    producer = weight.producer()
    if producer is None and _float_constant(weight) is None:
        return
    if producer is not None and (not is_dequantize(producer) or array is None):
        return
    if producer is not None and not _weight_axis_fits(
        node, producer, 0 if array is None else array.size
    ):
        return
    if producer is None:
        producer = _quantized_weight(graph, node, weight)
    if array is not None:
        _quantized_bias(graph, node, array, source, producer)


def _float_constant(value: ir.Value) -> NDArray[Any] | None:
    found = constant(value)
    return found if found is not None and found.dtype == np.float32 else None


def _weight_axis_fits(node: ir.Node, producer: ir.Node, channels: int) -> bool:
    grid = grid_of(producer)
    if grid is None or grid.scale.size == 1:
        return grid is not None
    if grid.scale.ndim != 1 or grid.scale.size != channels or attribute(producer, "block_size", 0):
        return False
    axis = attribute(producer, "axis", 1) % len(sizes(producer.inputs[0]) or (0,))
    expected = 0 if node.op_type != "Gemm" or attribute(node, "transB", 0) else 1
    return bool(axis == expected)


def _quantized_weight(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> ir.Node:
    array = constant(weight)
    if array is None:
        msg = "the weight is no constant"
        raise RuntimeError(msg)
    # the range that includes zero, on 255 steps with a zero point
    low, high = min(array.min(initial=0.0), 0.0), max(array.max(initial=0.0), 0.0)
    low, high = np.float32(low), np.float32(high)
    scale = np.float32((high - low) / np.float32(255)) if high > low else np.float32(1.0)
    zero = np.rint(np.clip(np.float32(-128) - low / scale, -128, 127)).astype(np.int8)
    integers = quantize(array, np.asarray(scale), np.asarray(zero), zero.dtype)
    stored = add_constant(graph, f"{node.name}/weight", integers)
    grid = [
        add_constant(graph, f"{node.name}/weight_scale", np.array(scale, np.float32)),
        add_constant(graph, f"{node.name}/weight_zero_point", np.array(zero, np.int8)),
    ]
    made = ir.node("DequantizeLinear", [stored, *grid], name=f"{node.name}/weight_dq")
    made.outputs[0].name = f"{node.name}/weight_dq"
    describe(made.outputs[0], weight)
    graph.insert_before(node, made)
    node.replace_input_with(1, made.outputs[0])
    return made


def _quantized_bias(
    graph: ir.Graph, node: ir.Node, bias: NDArray[Any], source: ir.Node, producer: ir.Node
) -> None:
    given, weight = grid_of(source), grid_of(producer)
    if given is None or weight is None:
        return
    scale = (given.scale.reshape(()) * weight.scale).astype(np.float32)
    integers = np.rint(bias / scale).astype(np.int32)
    stored = add_constant(graph, f"{node.name}/bias", integers)
    grid = add_constant(graph, f"{node.name}/bias_scale", scale)
    made = ir.node("DequantizeLinear", [stored, grid], {"axis": 0}, name=f"{node.name}/bias_dq")
    made.outputs[0].name = f"{node.name}/bias_dq"
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    made.outputs[0].shape = ir.Shape(bias.shape)
    graph.insert_before(node, made)
    node.replace_input_with(2, made.outputs[0])


def _is_single(node: ir.Node) -> bool:
    grid = grid_of(node)
    return grid is not None and grid.single
