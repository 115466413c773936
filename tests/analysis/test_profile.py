"""Time beside error: rows are found for what onnxruntime made of a file, errors are true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

from fxquant import QuantizationSimModel, prepare_model
from fxquant.analysis.profile import Profile, profile
from fxquant.cli import main
from fxquant.errors import ConfigError
from fxquant.onnx.io.reader import read_model
from fxquant.onnx.io.writer import write_model
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.ort.dequantized import without_pairs
from fxquant.onnx.ort.owners import Owners
from fxquant.onnx.session import KernelTime, Level, open_session, packed
from tests.helpers.grids import output_of


class Net(nn.Module):
    """A layer with a ReLU inside, a float island, a moved tensor and a product of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 1)
        self.fc = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = F.gelu(self.wide(x)).flatten(2)
        scores = torch.matmul(x, x.transpose(1, 2)) * 0.25
        return self.fc(F.softmax(scores, -1) @ x)  # type: ignore[no-any-return]


@pytest.fixture
def sim() -> QuantizationSimModel:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 16)
    found = QuantizationSimModel(Net().eval(), x, quant_scheme="min_max")
    found.compute_encodings([x])
    return found


@pytest.fixture
def files(sim: QuantizationSimModel, tmp_path: Path) -> tuple[Path, Path]:
    sim.export(tmp_path, "net", prove=False)
    np.savez(tmp_path / "x.npz", x=sim.example[0][0].numpy())
    return tmp_path / "net.onnx", tmp_path / "x.npz"


def _row(found: Profile, node: str) -> Any:
    return next(row for row in found.rows if row.node == node)


def test_rows_are_the_users_modules_with_kernel_and_error(files: tuple[Path, Path]) -> None:
    found = profile(*files, rounds=3)
    conv = _row(found, "conv")
    assert (conv.operator, conv.kernel, conv.integer) == ("Conv", "QLinearConv", True)
    assert conv.error is not None  # of the ReLU's output, which its kernel makes
    assert not any(row.node == "relu" for row in found.rows)
    gelu = _row(found, "gelu")
    assert (gelu.kernel, gelu.integer) == ("Gelu", False)
    assert gelu.conversions > 0
    assert abs(sum(row.share for row in found.rows) - 1) < 1e-9
    assert [r.seconds + r.conversions for r in found.rows] == sorted(
        (r.seconds + r.conversions for r in found.rows), reverse=True
    )


def test_errors_are_those_of_the_tensor(
    sim: QuantizationSimModel, files: tuple[Path, Path]
) -> None:
    found = profile(*files, rounds=1)
    x = sim.example[0][0]
    with torch.no_grad():
        model = sim.get_original_model(qdq_weights=True).eval()
        # the file's biases are rounded to the accumulator's step, which is below a tenth of a step
        exact = F.relu(model.get_submodule("conv")(x))
    graph = read_model(files[0])
    values = {v.name: v for n in graph.graph for v in n.outputs}
    graph.graph.outputs.append(values["relu.output_q"])
    with packed(graph) as source:
        integers = open_session(source, Level.OFF).run({"x": x.numpy()}, ["relu.output_q"])
    grid = output_of(sim.model, "relu")
    step, zero = grid.get_scale().item(), -grid.get_offset().item()
    real = (integers["relu.output_q"].astype(np.float64) - zero) * step
    error = np.abs(exact.numpy() - real) / step
    conv = _row(found, "conv").error
    assert abs(conv.mean_steps - error.mean()) < 0.1
    assert abs(conv.max_steps - error.max()) < 0.2
    assert conv.own_sqnr >= conv.sqnr


def test_without_grids_it_is_the_float_model(
    sim: QuantizationSimModel, files: tuple[Path, Path]
) -> None:
    plain = without_pairs(read_model(files[0]))
    kinds = {node.op_type for node in plain.graph}
    assert "QuantizeLinear" not in kinds
    x = sim.example[0][0]
    with packed(plain) as source:
        found = open_session(source, Level.OFF).run({"x": x.numpy()})
    with torch.no_grad():
        exact = sim.get_original_model(qdq_weights=True).eval()(x)
    # biases on the accumulator's grid: half a step each, far below one step of an activation
    assert float(np.abs(found["output"] - exact.numpy()).max()) < 1e-3 * float(exact.abs().max())


def test_a_relu_that_was_left_out_stays_an_end_of_the_grid(tmp_path: Path) -> None:
    from tests.helpers.qdq import Graph

    g = Graph(x=("batch", 3, 4, 4))
    x = g.quantized("x_in", g["x"], 0.02, 128)
    weight = g.constant("w", g.rng.normal(size=(2, 3, 1, 1)).astype(np.float32))
    y = g.quantized("conv_out", g.op("Conv", "conv", x, weight), 0.01, 0)
    path = tmp_path / "net.onnx"
    ir.save(g.model(y), path)
    data = {"x": np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)}
    with packed(without_pairs(read_model(path))) as source:
        (value,) = open_session(source, Level.OFF).run(data).values()
    assert value.min() == 0
    assert value.max() <= 2.55 + 1e-6
    error = _row(profile(path, data, rounds=1), "conv").error
    assert error is not None
    assert error.mean_steps < 2


def test_a_simulation_is_compared_with_its_float_model(sim: QuantizationSimModel) -> None:
    found = profile(sim, rounds=1)
    assert _row(found, "conv").error.sqnr > 20
    assert _row(found, "fc").kernel == "QGemm"


def test_another_float_file_can_be_the_truth(
    sim: QuantizationSimModel, files: tuple[Path, Path], tmp_path: Path
) -> None:
    prepared = prepare_model(sim.get_original_model(), sim.example[0])
    assert isinstance(prepared, torch.fx.GraphModule)
    write_model(lower(prepared, sim.example), tmp_path / "float.onnx")
    found = profile(*files, reference=tmp_path / "float.onnx", rounds=1)
    # weights are rounded now, and they were not in the file without grids
    assert _row(found, "conv").error.sqnr < _row(profile(*files, rounds=1), "conv").error.sqnr


def test_the_float_file_of_another_network_is_refused(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    other = prepare_model(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 16, 16))
    write_model(lower(other, ((torch.randn(1, 3, 16, 16),), {})), tmp_path / "float.onnx")
    with pytest.raises(ConfigError, match="FXQ762"):
        profile(*files, reference=tmp_path / "float.onnx", rounds=1)


def test_the_command_prints_the_slowest_rows_or_json(files: tuple[Path, Path]) -> None:
    path, data = map(str, files)
    args = ["profile", path, "--data", data, "--rounds", "1", "-q"]
    text = CliRunner().invoke(main, [*args, "--top", "2"])
    assert text.exit_code == 0
    assert "more operators" in text.output
    assert "SQNR" in text.output
    found = json.loads(CliRunner().invoke(main, [*args, "--json"]).output)
    assert {"rows", "seconds", "float_seconds", "threads"} == set(found)
    assert found["rows"][0]["seconds"] > 0


def test_what_is_missing_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["profile", "no.onnx", "--data", str(files[1]), "-q"])
    assert (result.exit_code, "no.onnx" in result.output) == (2, True)
    with pytest.raises(ConfigError, match="FXQ760"):
        profile(files[0])
    np.savez(tmp_path / "other.npz", y=np.zeros(1, np.float32))
    with pytest.raises(ConfigError, match="FXQ584"):
        profile(files[0], tmp_path / "other.npz")
    args = ["profile", str(files[0]), "--data", str(tmp_path / "other.npz"), "-q"]
    assert CliRunner().invoke(main, args).exit_code == 2
    with pytest.raises(ConfigError, match=r"FXQ760.*NaN in x"):
        profile(files[0], [np.full((1, 3, 16, 16), np.nan, np.float32)])


def test_infinite_values_do_not_count(files: tuple[Path, Path]) -> None:
    x = np.ones((1, 3, 16, 16), np.float32)
    x[0, 0, 0, 0] = np.inf
    content = profile(files[0], [x], rounds=1).to_json()
    json.loads(content, parse_constant=pytest.fail)  # "Infinity" and "NaN" are no JSON


class TwoInputs(nn.Module):
    """`forward(a, b)` with inputs of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a) + self.right(b)  # type: ignore[no-any-return]


def test_named_inputs_of_a_simulation_come_in_any_order() -> None:
    x = {"b": torch.randn(2, 5), "a": torch.randn(2, 4)}
    sim = QuantizationSimModel(TwoInputs().eval(), x, quant_scheme="min_max")
    sim.compute_encodings([x])
    assert _row(profile(sim, rounds=1), "left").kernel == "QGemm"


def test_kernels_are_found_by_names_with_slashes() -> None:
    conv = ir.node("Conv", [ir.val("x"), ir.val("w")], name="/block/conv")
    conv.outputs[0].name = "/block/y"
    owners = Owners(ir.Graph(conv.inputs, conv.outputs, nodes=[conv]))  # type: ignore[arg-type]
    for name in ("/block/conv_token_3", "/block/conv", "/block/y_nchwc", "/block/conv/0_nchwc"):
        assert owners.of(KernelTime(name, "Conv", 1.0)) == "/block/conv"
    assert "onnxruntime" in owners.of(KernelTime("/Transpose_token_1", "Transpose", 1.0))
