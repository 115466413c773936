"""Narrow floating-point formats."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

import fxquant.quantization as Q
from fxquant.errors import CalibrationError, QuantizationError, UncalibratedError

FP8 = {
    torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
    torch.float8_e5m2: TensorProto.FLOAT8E5M2,
    torch.float8_e4m3fnuz: TensorProto.FLOAT8E4M3FNUZ,
    torch.float8_e5m2fnuz: TensorProto.FLOAT8E5M2FNUZ,
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_a_cast(dtype: torch.dtype) -> None:
    q = Q.float.FloatQuantizeDequantize(dtype=dtype)
    x = torch.randn(1000, requires_grad=True)
    y = q(x)
    assert torch.equal(y, x.to(dtype).float())
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(1000))
    assert q.is_initialized()
    assert q.get_scale() is None
    assert q.get_encodings().bitwidth == 16  # type: ignore[union-attr]
    assert y.encoding.granularity == "pertensor"
    with q.compute_encodings():
        assert q(x) is x


def test_formats_by_their_bits() -> None:
    assert Q.float.FloatQuantizeDequantize(5, 10).dtype is torch.float16
    assert Q.float.FloatQuantizeDequantize(8, 7).dtype is torch.bfloat16
    assert Q.float.FloatQuantizeDequantize(4, 3).dtype is torch.float8_e4m3fn
    assert repr(Q.float.FloatQuantizeDequantize(8, 7)) == "FloatQuantizeDequantize(dtype=bfloat16)"
    for bits in ((3, 3), (None, None)):
        with pytest.raises(QuantizationError, match="FXQ414"):
            Q.float.FloatQuantizeDequantize(*bits)


def runtime(x: Tensor, scale: Tensor, kind: int) -> np.ndarray:
    """What onnxruntime makes of it."""
    zero = helper.make_tensor("zero", kind, [], b"\0", raw=True)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "scale")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "fp8", inputs, outputs, [zero])
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    feeds = {"x": x.numpy(), "scale": scale.numpy()}
    found: np.ndarray = session.run(None, feeds)[0]
    return found


@pytest.mark.parametrize("dtype", FP8)
def test_eight_bits_equal_onnxruntime(dtype: torch.dtype) -> None:
    q = Q.float.FloatQuantizeDequantize(dtype=dtype)
    with pytest.raises(UncalibratedError):
        q(torch.zeros(1))
    with q.compute_encodings():
        q(torch.randn(100))
        q(torch.empty(0))
        q(torch.randn(100))
    x = torch.cat([torch.randn(2000) * 3, torch.tensor([0.0, 1e30, -1e30])])
    scale = q.get_scale()
    assert scale is not None
    assert np.array_equal(q(x).numpy(), runtime(x, scale, FP8[dtype]))


def test_clipped_values_have_no_gradient() -> None:
    q = Q.float.FloatQuantizeDequantize(dtype=torch.float8_e4m3fn)
    q.set_range(-1.0, 1.0)
    x = torch.tensor([-3.0, 0.5, 3.0], requires_grad=True)
    q(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


def test_ranges_of_channels_and_state() -> None:
    q = Q.float.FloatQuantizeDequantize(dtype=torch.float8_e5m2, shape=(2, 1))
    with q.compute_encodings():
        q(torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
    assert q.get_scale().flatten().tolist() == pytest.approx([2.0 / 57344, 1.0])  # type: ignore[union-attr]
    fresh = Q.float.FloatQuantizeDequantize(dtype=torch.float8_e5m2, shape=(2, 1))
    fresh.load_state_dict(q.state_dict())
    assert fresh.is_initialized()
    assert copy.deepcopy(q).get_encodings().granularity == "perchannel"  # type: ignore[union-attr]
    with pytest.raises(CalibrationError), q.compute_encodings():
        q(torch.tensor([[1.0], [torch.nan]]))
