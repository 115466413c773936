"""The proof: a sound file passes, every kind of damage is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from fxquant import QuantizationSimModel
from fxquant.errors import ExportError, ParityError
from fxquant.onnx.lowering.result import Lowered
from fxquant.onnx.parity.prove import prove
from fxquant.onnx.parity.report import ParityReport
from tests.helpers.handmade import array, changed, example, lowered, simulated, written


def proof_of(gm: fx.GraphModule, low: Lowered, folder: Path) -> ParityReport:
    return prove(gm, low, example(), written(low, folder))


@pytest.fixture
def gm() -> fx.GraphModule:
    return simulated()


@pytest.fixture
def low(gm: fx.GraphModule) -> Lowered:
    return lowered(gm)


def test_a_sound_file_is_proven(gm: fx.GraphModule, low: Lowered, tmp_path: Path) -> None:
    report = proof_of(gm, low, tmp_path)
    assert report
    assert report.proven
    assert report.max_steps <= 1
    assert report.exact_share > 0.999
    assert [(row.node, row.level) for row in report.tensors] == [
        (node, level) for level in ("off", "all") for node in ("stub", "relu", "pool", "flat", "fc")
    ]
    assert report.tensors[0].elements == 4 * 3 * 8 * 8
    assert report.label_agreement == 1.0
    assert report.integer_macs_share == 1.0
    assert not report.float_operators
    assert report.equal_share.keys() == {"off", "all"}
    assert not report.skipped


def test_the_simulation_is_left_as_it_was(gm: fx.GraphModule, low: Lowered, tmp_path: Path) -> None:
    gm.get_submodule("pool").train()
    before = {name: module.training for name, module in gm.named_modules()}
    proof_of(gm, low, tmp_path)
    assert before == {name: module.training for name, module in gm.named_modules()}
    assert not any(m._forward_pre_hooks for m in gm.modules())


def bias_scale(low: Lowered) -> None:
    changed(low, "fc.bias_scale", array(low, "fc.bias_scale") * np.float32(3))


def weight_axis(low: Lowered) -> None:
    changed(low, "conv.weight_scale", array(low, "conv.weight_scale")[::-1].copy())


def one_weight(low: Lowered) -> None:
    weight = array(low, "conv.weight")
    weight[3, 1, 1, 1] = -127 if weight[3, 1, 1, 1] > 0 else 127
    changed(low, "conv.weight", weight)


def no_bias(low: Lowered) -> None:
    changed(low, "conv.bias", array(low, "conv.bias") * 0)


@pytest.mark.parametrize(
    ("damage", "node"),
    [(bias_scale, "fc"), (weight_axis, "relu"), (one_weight, "relu"), (no_bias, "relu")],
)
def test_damage_is_found_where_it_is_and_nowhere_else(
    damage: Callable[[Lowered], None], node: str, gm: fx.GraphModule, low: Lowered, tmp_path: Path
) -> None:
    damage(low)
    report = proof_of(gm, low, tmp_path)
    assert not report
    assert {row.node for row in report.tensors if row.unexplained} == {node}
    with pytest.raises(ParityError, match="FXQ560") as error:
        report.raise_unless_proven()
    assert node in str(error.value)


def test_a_scale_that_is_not_the_simulations_is_found(
    gm: fx.GraphModule, low: Lowered, tmp_path: Path
) -> None:
    changed(low, "relu_scale", array(low, "relu_scale") * np.float32(1.01))
    report = proof_of(gm, low, tmp_path)
    assert "relu" in {row.node for row in report.tensors if row.unexplained}


def test_a_tie_is_told_from_drift(gm: fx.GraphModule, low: Lowered, tmp_path: Path) -> None:
    bias = array(low, "conv.bias")
    scale = array(low, "conv.bias_scale")
    step = float(array(low, "relu_scale"))
    # a fiftieth of a step: few elements cross a boundary, each by one step
    changed(low, "conv.bias", (bias + np.rint(step / 50 / scale)).astype(np.int32))
    report = proof_of(gm, low, tmp_path)
    row = next(r for r in report.tensors if r.node == "relu" and r.level == "off")
    assert row.drift > 0
    assert row.defect == 0
    assert row.max_steps == 1
    assert row.tolerance < 0.001 < 0.01 < row.distance < 0.03
    assert not report


def test_a_sound_report_prints_and_gives_json(
    gm: fx.GraphModule, low: Lowered, tmp_path: Path
) -> None:
    report = proof_of(gm, low, tmp_path)
    text = " ".join(str(report).split())  # lines are folded
    assert text.startswith("proven against onnxruntime")
    assert "5 of 5 operators" in text
    plain = json.loads(report.to_json())
    assert plain["proven"] is True
    assert plain["integer_macs_share"] == 1.0


def test_a_wrong_report_shows_the_worst_rows_with_the_users_line(
    gm: fx.GraphModule, low: Lowered, tmp_path: Path
) -> None:
    next(n for n in gm.graph.nodes if n.name == "fc").meta["source"] = "net.py:12"
    bias_scale(low)
    report = proof_of(gm, low, tmp_path)
    assert "NOT PROVEN" in str(report)
    assert "net.py:12" in str(report)
    with pytest.raises(ParityError, match=r"net\.py:12"):
        report.raise_unless_proven()


def test_an_unproven_report_is_false_and_says_so() -> None:
    report = ParityReport(proven=False)
    assert not report
    assert "not compared" in str(report)
    report.raise_unless_proven()


def test_infinity_in_the_simulation_is_an_error_that_names_the_module(
    gm: fx.GraphModule, low: Lowered, tmp_path: Path
) -> None:
    path = written(low, tmp_path)
    with torch.no_grad():
        gm.get_parameter("conv.bias").fill_(float("nan"))
    with pytest.raises(ExportError, match=r"FXQ562.*'relu'"):
        prove(gm, low, example(), path)


def test_a_file_that_onnxruntime_refuses_is_an_error(
    gm: fx.GraphModule, low: Lowered, tmp_path: Path
) -> None:
    changed(low, "conv.weight_zero", np.zeros(8, np.uint8))
    with pytest.raises(ExportError, match="FXQ551"):
        proof_of(gm, low, tmp_path)


def test_the_example_must_have_every_input(
    gm: fx.GraphModule, low: Lowered, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="FXQ501"):
        prove(gm, low, ((), {}), written(low, tmp_path))


class SteppingOver(nn.Module):
    """Pads with infinity in front of a max pooling, as networks from TensorFlow do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.pool = nn.MaxPool2d(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(self.first(x), (0, 1, 0, 1), value=float("-inf"))
        return self.second(self.pool(x))  # type: ignore[no-any-return]


def test_infinite_padding_is_the_end_of_the_grid(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    sim = QuantizationSimModel(SteppingOver(), x)
    sim.compute_encodings([x])
    report = sim.export(tmp_path, "padded", x)
    assert report.max_steps == 0
    assert {row.name for row in report.float_operators} == {"pad"}
