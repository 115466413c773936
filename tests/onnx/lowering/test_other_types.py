"""Floats of other widths: in foreign files, as casts in a float32 model; numbers without axes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as h
import onnx.numpy_helper as nh
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto as T
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.onnx.examine import examine
from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.parity import file_outputs

FLOAT8 = ("FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT8E4M3FNUZ", "FLOAT8E5M2FNUZ")


def _nodes(kind: str, code: int) -> list[Any]:
    pair: dict[str, list[Any]] = {
        "stored": [h.make_node("DequantizeLinear", ["w", "s"], ["d"]),
                   h.make_node("Mul", ["x", "d"], ["y"])],
        "stored-zero": [h.make_node("DequantizeLinear", ["w", "s", "z"], ["d"]),
                        h.make_node("Mul", ["x", "d"], ["y"])],
        "pair": [h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                 h.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        "pair-plain": [h.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=code),
                       h.make_node("DequantizeLinear", ["q", "s"], ["y"])],
        "cast": [h.make_node("Cast", ["x"], ["q"], to=code),
                 h.make_node("Transpose", ["q"], ["r"], perm=[0]),
                 h.make_node("Cast", ["r"], ["y"], to=T.FLOAT)],
    }  # fmt: skip
    return pair[kind]


def _model(kind: str, name: str) -> onnx.ModelProto:
    code = getattr(T, name)
    stored = [
        nh.from_array(np.asarray(0.7, np.float32), "s"),
        h.make_tensor("w", code, [4], [0.5, 1.5, -0.5, 3.0]),
        h.make_tensor("z", code, [], [0.0]),
    ]
    x, y = (h.make_tensor_value_info(k, T.FLOAT, [4]) for k in "xy")
    nodes = _nodes(kind, code)
    used = {i for n in nodes for i in n.input}
    graph = h.make_graph(nodes, "g", [x], [y], [t for t in stored if t.name in used])
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)


X = np.array([0.5, 1.3, -7.7, 500.0], np.float32)  # the last is beyond the largest float8


@pytest.mark.parametrize("name", FLOAT8)
@pytest.mark.parametrize("kind", ["stored", "stored-zero", "pair", "pair-plain", "cast"])
def test_the_executor_reads_codes_as_onnxruntime_does(kind: str, name: str, tmp_path: Path) -> None:
    model = _model(kind, name)
    (truth,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": X})
    assert np.array_equal(np.asarray(IntegerModel(model)(X)), truth, equal_nan=True)
    onnx.save(model, tmp_path / "m.onnx")
    assert examine(tmp_path / "m.onnx", {"x": X})


def test_bfloat16_is_rounded_as_onnxruntime_does() -> None:
    model = _model("cast", "BFLOAT16")
    x = np.array(
        [1.00390625, 1.01171875, 3.4e38, np.inf], np.float32
    )  # two ties, one that overflows
    (truth,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    assert np.array_equal(np.asarray(IntegerModel(model)(x)), truth)


def test_verify_fails_where_the_executor_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(_model("stored", FLOAT8[0]), tmp_path / "m.onnx")
    run = IntegerModel.run

    def off(self: IntegerModel, feeds: Any, wanted: Any = None) -> Any:
        return {
            k: v + np.array([0, 1.9, 0, 0], np.float32) for k, v in run(self, feeds, wanted).items()
        }

    monkeypatch.setattr(IntegerModel, "run", off)
    found = examine(tmp_path / "m.onnx", {"x": X})
    assert not found
    assert "FXQ595" in {f.code for f in found.lint.errors}


def test_what_two_orders_of_a_sum_may_differ_by_is_no_error() -> None:
    a = np.array([1000.0, 1.0, 0.0, np.inf], np.float32)
    assert file_outputs.unlike("y", a, a * np.float32(1.0005)) is None
    assert file_outputs.unlike("y", a, a + np.array([0, 0, 1, 0], np.float32)) is not None


CASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "bfloat16": lambda x: x.to(torch.bfloat16).to(torch.float32),
    "half": lambda x: x.half().float(),
    "double": lambda x: (x.double() * 2.5).float(),
    "moved": lambda x: x.double().reshape(-1, 2, 4).flatten(1).float(),
    "moved-half": lambda x: x.half().t().t().float(),
    "softmax": lambda x: x.double().softmax(-1).to(x.dtype),
    "mean": lambda x: (x - x.double().mean(-1, keepdim=True)).float(),
    "type_as": lambda x: x.half().type_as(x),
    "beside": lambda x: x + x.half().float(),
    "relu": lambda x: torch.relu(x.half()).float(),
    "concat": lambda x: torch.cat([x.double()[:, :4], x.double()[:, 4:]], 1).float(),
    "norm": lambda x: x * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-6).float(),
    "scalar": lambda x: x * x.mean(),
    "scalar-max": lambda x: x / (x.abs().amax() + 1),
}


class Part(nn.Module):
    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.part = nn.Linear(4, 8), nn.Linear(8, 4), part

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.part(F.relu(self.a(x))))
        return y


@pytest.mark.parametrize("name", CASTS)
def test_a_part_in_another_type(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 4)
    sim = QuantizationSimModel(Part(CASTS[name]).eval(), x, "min_max")
    sim.compute_encodings([x])
    assert sim.export(tmp_path, "net", x)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    (found,) = session.run(None, {"x": x.numpy()})
    with torch.no_grad():
        wanted = sim.model(x)
    assert np.abs(found - wanted.numpy()).max() < 1e-5
    assert np.abs(sim.integer_model()(x).numpy() - found).max() < 1e-5


class PerSample(nn.Module):
    """Weights that depend on the sample: the groups of the convolution are the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.style = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Linear(5, 3)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        b = x.size(0)
        w = (self.w[None] * self.style(s)[:, None, :, None, None]).reshape(b * 6, 3, 3, 3)
        y = F.conv2d(x.reshape(1, b * 3, *x.shape[2:]), w, groups=b, padding=1)
        return y.reshape(b, 6, *x.shape[2:])


def test_groups_that_are_the_batch_fix_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(4, 3, 8, 8), torch.randn(4, 5))
    sim = QuantizationSimModel(PerSample().eval(), inputs, "min_max")
    sim.compute_encodings([inputs])
    report = sim.export(tmp_path, "net", inputs)
    assert report
    assert "the batch size is fixed" in str(report)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert [i.shape[0] for i in session.get_inputs()] == [4, 4]
