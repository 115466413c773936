"""Files of other tools: onnxruntime's own quantizer in each of its formats and types."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from torch import Tensor, nn

from fxquant import prepare_model
from fxquant.onnx.examine import Examination, examine
from fxquant.onnx.lint.verify import verify_file
from fxquant.onnx.lowering.lower import lower

SHAPE = (2, 3, 8, 8)


class Network(nn.Module):
    """Convolutions, a residual sum, a concat, a pool, a softmax and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.first(x))
        b = self.pool(torch.sigmoid(self.depthwise(a)) + a)
        y = self.head(torch.cat([b, self.pool(a)], 1).mean((2, 3)))
        probabilities: Tensor = y.softmax(-1)
        return probabilities


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    x = torch.randn(SHAPE)
    model = prepare_model(Network().eval(), x)
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    ir.save(lower(model, ((x,), {}), opset=17).model, path)
    plain = onnx.load(path)
    del plain.graph.value_info[:]  # the tool transposes weights and trips over their old shapes
    onnx.save(plain, path)
    return path


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    # the tool advises on preprocessing through the root logger
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.left = [{"x": image(seed)} for seed in range(3)]

    def get_next(self) -> Any:
        return self.left.pop() if self.left else None


def image(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def quantized(network: Path, folder: Path, **options: Any) -> Path:
    path = folder / "quantized.onnx"
    options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, **options}
    quantize_static(str(network), str(path), Reader(), **options)
    return path


def assert_exact(found: Examination) -> None:
    """The executor computes what the default run computes, from end to end."""
    assert found.executor_share == 1.0
    apart = [o for o in found.outputs if o.against == "executor"]
    assert apart
    assert all(o.difference == 0.0 for o in apart)


U8, S8, U16, S16 = QuantType.QUInt8, QuantType.QInt8, QuantType.QUInt16, QuantType.QInt16


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("activation", "weight"), [(U8, S8), (U8, U8), (S8, S8), (U16, S8), (S16, S16)]
)
def test_qdq(
    network: Path, tmp_path: Path, activation: Any, weight: Any, per_channel: bool
) -> None:
    path = quantized(
        network, tmp_path, activation_type=activation, weight_type=weight, per_channel=per_channel
    )
    found = examine(path, [image(9)])
    assert_exact(found)
    assert not found.lint.errors
    assert any(f.code == "FXQ525" for f in found.lint.findings) == (activation is S8)
    fell_back = [r for r in found.operators if not r.integer]
    assert all(r.reason for r in fell_back)
    if activation in (U16, S16):
        words = [r for r in fell_back if r.operator in ("Conv", "Concat", "MaxPool", "Gemm")]
        assert len(words) == 5 + 1
        assert all("int16" in r.reason for r in words)
    elif activation is U8:
        assert not any(r.operator in ("Conv", "Gemm", "Concat", "MaxPool") for r in fell_back)


@pytest.mark.parametrize("activation", [U8, S8])
def test_operators_of_integers(network: Path, tmp_path: Path, activation: Any) -> None:
    path = quantized(
        network, tmp_path, quant_format=QuantFormat.QOperator, activation_type=activation
    )
    found = examine(path, [image(9)])
    assert_exact(found)
    rows = {r.operator: r for r in found.operators}
    assert rows["QLinearConv"].integer
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
    described = examine(path, [image(9)]).operators
    assert {r.name for r in described} == {r.name for r in found.operators}
    assert sum(r.macs for r in described if r.operator == "QLinearConv") > 0


def test_seven_bits_do_not_saturate(network: Path, tmp_path: Path) -> None:
    assert examine(quantized(network, tmp_path), [image(9)]).risks
    assert not examine(quantized(network, tmp_path, reduce_range=True), [image(9)]).risks


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ("QuantizeBias", "FXQ573"),
        ("AddQDQPairToWeight", "FXQ519"),
        ("DedicatedQDQPair", "FXQ522"),
        ("UseQDQContribOps", "FXQ574"),
        ("ActivationSymmetric", "FXQ574"),
    ],
)
def test_options_of_the_tool(network: Path, tmp_path: Path, option: str, code: str) -> None:
    chosen = {option: option != "QuantizeBias"}
    path = quantized(network, tmp_path, per_channel=True, extra_options=chosen)
    found = examine(path, [image(9)])
    assert_exact(found)
    assert code in {f.code for f in found.lint.findings}


@pytest.mark.parametrize("weight", [S8, U8])
def test_dynamic_quantization(network: Path, tmp_path: Path, weight: Any) -> None:
    path = tmp_path / "dynamic.onnx"
    quantize_dynamic(str(network), str(path), weight_type=weight)
    found = examine(path, [image(9)])
    assert_exact(found)
    kinds = {r.operator: r for r in found.operators}
    assert kinds["ConvInteger"].integer
    assert kinds["MatMulInteger"].integer
    assert "DynamicQuantizeLinear" not in kinds


def test_half_precision_is_run_by_the_runtime(tmp_path: Path) -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, [2, 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, [2, 4])
    nodes = [
        onnx.helper.make_node("Sigmoid", ["x"], ["s"]),
        onnx.helper.make_node("Mul", ["x", "s"], ["y"]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    model.ir_version = 10
    path = tmp_path / "half.onnx"
    onnx.save(model, path)
    found = examine(path, [image(0).reshape(-1)[:8].reshape(2, 4).astype(np.float16)])
    assert found
    assert [r.name for r in found.operators] == ["Sigmoid(s)", "Mul(y)"]
    assert [f.code for f in verify_file(path).findings] == ["FXQ579"]  # nothing is quantized
