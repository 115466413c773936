"""A report says how far a simulation is from its float model, and when it says nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.errors import ConfigError, ExportError
from fxquant.onnx.parity.fidelity import fidelity
from fxquant.onnx.parity.report import ParityReport
from fxquant.ptq import reconstruct
from tests.helpers.modules import quantized


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def sim_of(
    batches: list[Tensor], x: Tensor, model: nn.Module | None = None
) -> QuantizationSimModel:
    sim = QuantizationSimModel(model or net(), x, "min_max")
    sim.compute_encodings(batches)
    return sim


def data(rows: int = 64) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(1))


def told(sim: QuantizationSimModel, x: Tensor, folder: Path) -> ParityReport:
    report = sim.export(folder, "net", x)
    assert report.proven
    for warning in report.warnings:
        assert f"warning: {warning}" in str(report)
    return report


def test_a_good_simulation_is_compared_and_has_no_warnings(tmp_path: Path) -> None:
    x = data()
    sim = sim_of([x], x)
    report = told(sim, x, tmp_path)
    assert report.warnings == ()
    assert report.samples == 64
    (row,) = report.fidelity
    with torch.no_grad():
        real, ours = net()(x), sim.model(x)
    wanted = 10 * torch.log10(real.double().square().sum() / (real - ours).double().square().sum())
    assert row.sqnr_db == pytest.approx(float(wanted), rel=1e-9)
    assert row.labels == float((real.argmax(1) == ours.argmax(1)).float().mean())
    assert "against the float model, 64 row(s)" in str(report)
    written = json.loads((tmp_path / "net.report.json").read_text())
    assert written["fidelity"][0]["sqnr_db"] == pytest.approx(row.sqnr_db)


def test_weights_that_were_edited_after_calibration(tmp_path: Path) -> None:
    x = data()
    sim = sim_of([x], x)
    with torch.no_grad():
        sim.model.get_submodule("2").get_parameter("weight").mul_(3)
    text = " ".join(told(sim, x, tmp_path).warnings)
    assert "changed after calibration (2.weight)" in text
    assert "weight(s) are clipped: they leave their ranges (2.weight" in text
    sim.compute_encodings([x])
    assert told(sim, x, tmp_path).warnings == ()


def test_ranges_of_other_data(tmp_path: Path) -> None:
    x = data()
    text = " ".join(told(sim_of([torch.zeros(16, 8)], x), x, tmp_path).warnings)
    assert "clipped: the example leaves their range" in text
    assert "of the float model's" in text


@pytest.mark.parametrize(
    "band", [lambda x: x * 0.01 + 290.0, lambda x: x * 1e-3 + 5.0, lambda x: x * 1e-20]
)
def test_inputs_that_their_grid_does_not_resolve(
    band: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    x = band(data())
    text = " ".join(told(sim_of([x], x), x, tmp_path).warnings)
    assert "next to no information" in text


def test_an_empty_example_proves_nothing(tmp_path: Path) -> None:
    x = data()
    sim = sim_of([x], x)
    with pytest.raises(ConfigError, match="FXQ210"):
        sim.export(tmp_path, "net", x[:0])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ExportError, match=r"FXQ589.*no sample"):
        fidelity(sim.model, ((x[:0],), {}))


@pytest.mark.parametrize("name", ["0.bias", "2.weight"])
def test_nan_is_refused_by_name(name: str, tmp_path: Path) -> None:
    x = data()
    sim = sim_of([x], x)
    with torch.no_grad():
        sim.model.get_parameter(name).reshape(-1)[0] = float("nan")
    with pytest.raises(ExportError, match=f"FXQ598.*{name}.*NaN at 1 of"):
        sim.export(tmp_path, "net", x)


def test_nan_in_the_example_is_refused(tmp_path: Path) -> None:
    x = data()
    sim = sim_of([x], x)
    broken = x.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(ExportError, match=r"FXQ598.*input 0"):
        sim.export(tmp_path, "net", broken)


def test_the_simulation_is_left_as_it_was() -> None:
    x = data()
    sim = sim_of([x], x)
    names = [n for n, _ in sim.named_quantizers()]
    with torch.no_grad():
        before = sim.model(x)
        fidelity(sim.model, ((x,), {}))
        assert torch.equal(sim.model(x), before)
    assert [n for n, _ in sim.named_quantizers()] == names
    assert not any(q._forward_hooks for q in sim.quantizers())


def test_what_costs_most_is_named() -> None:
    """One large channel makes the grid of the others coarse; a tensor's own energy hides that."""
    torch.manual_seed(0)
    norm, blind = nn.LayerNorm(8), nn.Linear(8, 4)
    model = nn.Sequential(nn.Linear(8, 8), norm, blind, nn.Linear(4, 4)).eval()
    with torch.no_grad():
        norm.weight[0] = 3e4
        blind.weight[:, 0] = 0.0
    x = torch.randn(64, 8)
    sim = QuantizationSimModel(model, x, "min_max")
    sim.compute_encodings([x])
    (warning,) = (w for w in fidelity(sim.model, ((x,), {})).warnings if "keeps" in w)
    assert "Quantized alone, these cost most: 1 " in warning


def test_the_bias_of_a_grouped_transposed_convolution() -> None:
    """Its weight has a channel for several channels of the bias."""
    x = torch.randn(2, 4, 5, 5)
    sim = QuantizationSimModel(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2)), x, "min_max")
    sim.compute_encodings([x])
    assert fidelity(sim.model, ((x,), {})).warnings == ()


def test_fewer_decibels_than_usual_are_a_note(tmp_path: Path) -> None:
    """12 to 17 dB can be used, but more can be had; from 17 dB on nothing is said."""
    x = data()
    found: dict[int, ParityReport] = {}
    for bits in (3, 8):
        sim = QuantizationSimModel(net(), x, "min_max", default_param_bw=bits)
        sim.compute_encodings([x])
        found[bits] = told(sim, x, tmp_path)
    few, enough = (found[bits].fidelity[0].sqnr_db for bits in (3, 8))
    assert few is not None
    assert enough is not None
    assert 12 < few < 17 < enough
    (note,) = (n for n in found[3].notes if "of the float model's" in n)
    assert f"output of the simulation keeps {few:.1f} dB" in note
    assert f"note: {note}" in str(found[3])
    assert note in json.loads(found[3].to_json())["notes"]
    assert not any("float model" in n for n in found[8].notes)
    assert not found[8].warnings


class Stream(nn.Module):
    """A residual stream whose norm has one large channel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.norm, self.last = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)
        with torch.no_grad():
            self.norm.weight[0] = 3e4
            self.last.weight[:, 0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x + self.fc(x)))  # type: ignore[no-any-return]


def test_a_chip_without_floats_keeps_its_integers_and_gets_a_warning() -> None:
    """What the chip requires is not up to the default: the report names what it costs."""
    x = data()
    grids: dict[str, bool] = {}
    warnings: dict[str, tuple[str, ...]] = {}
    for target in ("qualcomm_htp", "onnxruntime_x86"):
        sim = QuantizationSimModel(Stream().eval(), x, "min_max", target=target)
        sim.compute_encodings([x])
        grids[target] = any(True for _ in quantized(sim, "add").output_quantizers.active())
        warnings[target] = fidelity(sim.model, ((x,), {})).warnings
    assert grids == {"qualcomm_htp": True, "onnxruntime_x86": False}
    (warning,) = (w for w in warnings["qualcomm_htp"] if "keeps" in w)
    assert "Quantized alone, these cost most: norm " in warning


def test_the_float_model_is_the_one_before_reconstruction(tmp_path: Path) -> None:
    x = data()
    sim = sim_of([x], x)
    before = told(sim, x, tmp_path / "before")
    reconstruct(sim, [x])
    report = told(sim, x, tmp_path / "after")
    with torch.no_grad():
        real, ours = net()(x), sim.model(x)
    wanted = 10 * torch.log10(real.double().square().sum() / (real - ours).double().square().sum())
    assert report.fidelity[0].sqnr_db == pytest.approx(float(wanted), rel=1e-9)
    assert "4 parameter(s) as they were before techniques changed them" in str(report)
    assert "techniques" not in str(before)
    written = json.loads((tmp_path / "after" / "net.report.json").read_text())
    assert written["compared_with_float"].startswith("SQNR of output: the simulation against")
    assert written["compared_with_float"].endswith("on the example of the export: input [64, 8]")
