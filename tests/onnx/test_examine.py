"""`examine`: any QDQ file against onnxruntime at both levels and the integer executor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from fxquant.cli import main
from fxquant.errors import ConfigError
from fxquant.onnx.examine import examine
from fxquant.onnx.lint.verify import verify_file
from fxquant.sim import QuantizationSimModel
from tests.helpers.qdq import Graph
from tests.onnx.integer.test_kernels import normal

SHAPE = (4, 8, 9, 9)


def network(factor: float = 1.0) -> Graph:
    """`conv -> relu -> pool -> linear` on uint8, the bias of the linear layer off by a factor."""
    g = Graph(x=SHAPE)
    y = g.conv("conv", g.quantized("qx", g["x"], 0.04, 120), 0.04, (6, 8, 3, 3))
    y = g.quantized("qy", g.op("Relu", "relu", y), 0.05, 0)
    y = g.quantized("qp", g.op("GlobalAveragePool", "pool", y), 0.02, 0)
    y = g.quantized("qf", g.op("Flatten", "flat", y), 0.02, 0)
    weight, scales = g.weight("head", (5, 6))
    bias = g.bias("bias", scales * np.float32(0.02 * factor))
    made = g.quantized("qh", g.op("Gemm", "gemm", y, weight, bias, transB=1), 0.02, 128)
    made.shape = ir.Shape((SHAPE[0], 5))
    g.values["y"] = made
    return g


def saved(g: Graph, folder: Path) -> Path:
    outputs = [g.values.pop("y")]
    return g.save(folder, *outputs)


def test_a_good_file_is_good(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    found = examine(path, normal(x=SHAPE))
    assert found
    assert found.executor_share == 1.0
    assert found.samples == 4
    assert {t.node for t in found.tensors} >= {"relu", "pool", "gemm"}
    assert all(t.executor == t.elements and not t.defect for t in found.tensors)
    assert all(o.labels == 1.0 for o in found.outputs)
    assert sum(row.integer for row in found.operators) == len(found.operators)


def test_a_bias_on_the_wrong_grid_is_found_twice(tmp_path: Path) -> None:
    path = saved(network(factor=4.0), tmp_path)
    found = examine(path, normal(x=SHAPE))
    assert not found
    worst = max(found.tensors, key=lambda t: t.max_steps)
    assert (worst.node, worst.operator) == ("gemm", "Gemm")
    assert worst.defect > 0
    assert worst.executor == worst.elements  # the executor has the kernel's arithmetic
    assert any("bias" in f.what for f in found.lint.errors)


def test_the_text_and_the_json_hold_it_all(tmp_path: Path) -> None:
    found = examine(saved(network(factor=4.0), tmp_path), normal(x=SHAPE))
    text = str(found)
    for part in ("defect", "gemm", "operators run in integer kernels", "executor"):
        assert part in text
    content = json.loads(found.to_json())
    assert content["ok"] is False
    assert {"lint", "operators", "tensors", "outputs", "risks", "executor_share"} <= set(content)


def _archive(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def test_data_comes_by_name_or_in_order(tmp_path: Path) -> None:
    path, x = saved(network(), tmp_path), normal(x=SHAPE)["x"]
    named = examine(path, _archive(tmp_path, x=x))
    unnamed = tmp_path / "unnamed.npz"
    np.savez(unnamed, x)
    assert named.tensors == examine(path, unnamed).tensors == examine(path, [x]).tensors


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    with pytest.raises(ConfigError, match="FXQ584"):
        examine(path, _archive(tmp_path, wrong=np.zeros(3)))
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="FXQ583"):
        examine(path, tmp_path / "broken.npz")


@pytest.mark.parametrize(
    "array",
    [np.zeros(SHAPE), np.zeros(SHAPE[1:], np.float32), np.zeros((4, 7, 9, 9), np.float32),
     np.zeros(SHAPE, np.int64), np.array("text"), np.zeros((0, *SHAPE[1:]), np.float32)],
    ids=["float64", "rank", "channels", "int64", "text", "empty"],
)  # fmt: skip
def test_arrays_of_another_type_or_shape_are_refused(tmp_path: Path, array: Any) -> None:
    path = saved(network(), tmp_path)
    with pytest.raises(ConfigError, match=r"FXQ584.*'x' is float32 \[4, 8, 9, 9\]"):
        examine(path, _archive(tmp_path, x=array))


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    archive = _archive(tmp_path, **normal(x=SHAPE))
    archive.write_bytes(archive.read_bytes()[:300])
    with pytest.raises(ConfigError, match="FXQ583"):
        examine(path, archive)
    with pytest.raises(ConfigError, match="FXQ583"):
        examine(path, _archive(tmp_path, x=np.array([None])))


def test_a_single_array_file_is_the_input(tmp_path: Path) -> None:
    path, x = saved(network(), tmp_path), normal(x=SHAPE)["x"]
    np.save(tmp_path / "x.npy", x)
    assert examine(path, tmp_path / "x.npy").samples == 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_is_not_finite_is_run(tmp_path: Path, value: float) -> None:
    x = np.full(SHAPE, value, np.float32)
    found = examine(saved(network(), tmp_path), [x])
    assert [f.code for f in found.lint.findings] == (["FXQ585"] if np.isnan(value) else [])
    assert str(found)


def test_data_without_a_row_is_refused(tmp_path: Path) -> None:
    g = Graph(x=("batch", 4))
    path = g.save(tmp_path, g.quantized("q", g["x"], 0.1, 3))
    with pytest.raises(ConfigError, match=r"(?s)FXQ584.*with a row"):
        examine(path, [np.zeros((0, 4), np.float32)])


def test_a_malformed_file_gives_its_findings_and_is_not_run(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    y = g.quantized("q", g["x"], 0.0, 3)
    y.shape = ir.Shape(SHAPE)
    found = examine(g.save(tmp_path, y), normal(x=SHAPE))
    assert not found
    assert [f.code for f in found.lint.errors] == ["FXQ515", "FXQ515"]
    assert not found.operators
    assert not found.outputs


def test_what_the_runtime_does_not_load_is_a_finding(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    y = g.op("Relu", "relu", g["x"])
    y.shape = ir.Shape(SHAPE)
    model = g.model(y)
    # well formed, but no release has a kernel for an operator of somebody's own
    model.graph[0].domain = "somebody"
    model.opset_imports["somebody"] = 1
    ir.save(model, tmp_path / "new.onnx")
    found = examine(tmp_path / "new.onnx", normal(x=SHAPE))
    assert [f.code for f in found.lint.errors] == ["FXQ571"]


def test_control_flow_is_not_compared(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    real = g.quantized("q", g["x"], 0.1, 3)
    branches = []
    for kind in ("Relu", "Neg"):
        node = ir.node(kind, [real], name=kind)
        node.outputs[0].name = f"{kind}.out"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        branches.append(ir.Graph([], node.outputs, nodes=[node], name=kind))
    total = g.op("ReduceMax", "sum", g["x"], keepdims=0)
    chosen = g.op("Greater", "greater", total, g.constant("zero", np.float32(0)))
    y = g.op("If", "if", chosen, then_branch=branches[0], else_branch=branches[1])
    y.shape = ir.Shape(SHAPE)
    found = examine(g.save(tmp_path, y), normal(x=SHAPE))
    assert found
    assert [(f.code, f.node) for f in found.lint.findings] == [("FXQ578", "if")]
    assert found.operators
    assert not found.tensors


def test_seven_bits_from_the_configuration_to_the_report(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    found = {}
    for config in ("default", "reduce_range"):
        sim = QuantizationSimModel(net.eval(), x, "min_max", config=config)
        sim.compute_encodings([x])
        report = sim.export(tmp_path, config)
        examined = examine(tmp_path / f"{config}.onnx", [x.numpy()])
        assert report.risks == examined.risks
        assert ("can saturate" in str(report)) == ("can saturate" in str(examined))
        written = json.loads((tmp_path / f"{config}.report.json").read_text())
        assert [r["node"] for r in written["risks"]] == [r.node for r in report.risks]
        found[config] = report.risks
        notes = [f.code for f in verify_file(tmp_path / f"{config}.onnx").findings]
        assert ("FXQ577" in notes) == bool(report.risks)
    assert {r.node for r in found["default"]} == {"0", "3"}
    assert found["reduce_range"] == ()
    stored = ir.load(tmp_path / "reduce_range.onnx").graph.initializers.values()
    weights = [v.const_value.numpy() for v in stored if v.dtype is ir.DataType.INT8]  # type: ignore[union-attr]
    assert max(int(np.abs(w.astype(np.int32)).max()) for w in weights) in (63, 64)


def test_int8_activations_are_examined_without_changing_what_runs(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    x = g.quantized("qx", g["x"], 0.04, -8, np.int8)
    y = g.quantized("qy", g.conv("conv", x, 0.04, (6, 8, 3, 3)), 0.05, 3, np.int8)
    found = examine(g.save(tmp_path, y), normal(x=SHAPE))
    assert found.tensors == ()
    assert all(o.difference == 0.0 for o in found.outputs if o.against == "executor")
    assert any(f.severity == "warning" for f in found.lint.findings)


def test_a_file_without_quantizers_is_fine(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    found = examine(g.save(tmp_path, g.op("Relu", "relu", g["x"])), normal(x=(2, 3)))
    assert found.tensors == ()
    assert found.executor_share == 1.0
    assert isinstance(ir.load(tmp_path / "model.onnx"), ir.Model)


# --- the command ---------------------------------------------------------------------------------


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["verify", *arguments])


def test_the_command_examines_with_data(tmp_path: Path) -> None:
    path = str(saved(network(), tmp_path))
    data = str(_archive(tmp_path, x=normal(x=SHAPE)["x"]))
    result = call(path, "--data", data)
    assert result.exit_code == 0, result.output
    assert "operators run in integer kernels" in result.output
    content = json.loads(call(path, "--data", data, "--json").stdout)
    assert content["ok"] is True
    assert content["executor_share"] == 1.0


def test_the_command_fails_on_a_file_that_computes_something_else(tmp_path: Path) -> None:
    path = str(saved(network(factor=4.0), tmp_path))
    data = str(_archive(tmp_path, x=normal(x=SHAPE)["x"]))
    assert call(path, "--data", data).exit_code == 1
    assert call(path, "--data", str(tmp_path / "absent.npz")).exit_code == 2
