"""onnxruntime's QuantizeLinear and DequantizeLinear, with scale and zero point as inputs."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from torch import Tensor

TYPES = {
    (0, 255): TensorProto.UINT8,
    (-128, 127): TensorProto.INT8,
    (0, 65535): TensorProto.UINT16,
    (-32768, 32767): TensorProto.INT16,
    (0, 15): TensorProto.UINT4,
    (-8, 7): TensorProto.INT4,
}


@cache
def model(dtype: int, axis: int, block_size: int) -> onnx.ModelProto:
    """`x, scale, zero point as int32 -> quantized and dequantized x`."""
    attributes: dict[str, Any] = (
        {"axis": axis, "block_size": block_size} if block_size else {"axis": axis}
    )
    nodes = [
        helper.make_node("Cast", ["zero"], ["typed"], to=dtype),
        helper.make_node("QuantizeLinear", ["x", "scale", "typed"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "typed"], ["y"], **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "qdq",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("zero", TensorProto.INT32, None),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opset = helper.make_opsetid("", 21)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


@cache
def session(dtype: int, axis: int, block_size: int) -> ort.InferenceSession:
    """A session without optimizations: the operators as they are defined."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    data = model(dtype, axis, block_size).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def qdq(
    x: Tensor, scale: Tensor, zero: Tensor, grid: tuple[int, int], axis: int = 0, block: int = 0
) -> Any:
    """What onnxruntime makes of `x`, as a numpy array."""
    feeds = {
        "x": x.numpy(),
        "scale": scale.detach().numpy(),
        "zero": zero.numpy().astype(np.int32),
    }
    return session(TYPES[grid], axis, block).run(None, feeds)[0]
