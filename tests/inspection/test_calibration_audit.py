"""The calibration audit: silent on healthy networks, and one test for each fault."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from fxquant import QuantizationSimModel, audit_calibration
from fxquant.cli import main
from fxquant.errors import CalibrationError
from fxquant.inspection.audit.accumulator_bounds import INT32
from fxquant.models import digits

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fxquant.inspection.audit.calibration_audit import CalibrationAudit, Finding

MEAN, DEVIATION = 0.45, 0.225


def images(count: int = 64, seed: int = 0) -> Tensor:
    """Smooth images of different brightness, normalized as networks want them."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(rough, size=12, mode="bilinear")
    return (smooth - MEAN) / DEVIATION


def pixels(x: Tensor) -> Tensor:
    """The same images between 0 and 1."""
    return x * DEVIATION + MEAN


def net() -> nn.Module:
    """A network whose batch norms have seen images."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 4),
    )  # fmt: skip
    made.train()
    with torch.no_grad():
        made(images(256, seed=1))
    return made.eval()


def simulated(model: nn.Module, x: Tensor, **options: Any) -> QuantizationSimModel:
    sim = QuantizationSimModel(model, x[:4], "min_max", **options)
    sim.compute_encodings([x])
    return sim


def kinds(audit: CalibrationAudit) -> set[str]:
    return {finding.kind for finding in audit.findings}


def one(audit: CalibrationAudit, kind: str) -> Finding:
    found = [f for f in audit.findings if f.kind == kind]
    assert len(found) == 1, str(audit)
    assert found[0].where
    assert found[0].fix
    return found[0]


def both(x: Sequence[Tensor], calibrated_on: Tensor | None = None) -> list[CalibrationAudit]:
    """Audits of the float network and of its simulation, where batch norms are folded."""
    sim = simulated(net(), images() if calibrated_on is None else calibrated_on)
    return [audit_calibration(model, x) for model in (net(), sim)]


def test_healthy_data_are_not_mentioned() -> None:
    for audit in both(images(64, seed=2).split(16)):
        assert audit, str(audit)
        assert (audit.samples, audit.batches) == (64, 4)
        assert str(audit).startswith("nothing wrong in 64 sample(s) of 4 batch(es)")


@pytest.mark.parametrize("name", ["squeezenet", "bert", "lstm"])
def test_healthy_networks_are_not_mentioned(name: str) -> None:
    recipe = digits.RECIPES[name]
    torch.manual_seed(0)
    model = recipe.factory().eval()
    data = list(islice(digits.calibration(recipe.encode), 1))
    sim = QuantizationSimModel(model, data[0], "min_max")
    sim.compute_encodings(data)
    for audited in (model, sim):
        audit = audit_calibration(audited, data)
        assert audit, str(audit)


def test_few_samples() -> None:
    for audit in both([images(7)]):
        assert kinds(audit) == {"too few samples"}
        assert "7 different sample(s)" in one(audit, "too few samples").message
        assert "12%" in one(audit, "too few samples").message  # 1 of 8


def test_duplicates_are_found_across_batches() -> None:
    x = images(48)
    again = [x, x[:16].clone()]
    audit = audit_calibration(net(), again)
    assert kinds(audit) == {"duplicate samples"}
    assert one(audit, "duplicate samples").message == "16 of 64 samples came before"
    same = audit_calibration(net(), [x[:1].expand(64, -1, -1, -1)])
    assert one(same, "duplicate samples").severity == "error"


def test_constant_samples_and_channels() -> None:
    x = images()
    x[:8] = torch.arange(8.0).reshape(8, 1, 1, 1) / 8  # different ones, all empty
    audit = audit_calibration(net(), [x])
    assert one(audit, "constant samples").message == "8 of 64 samples hold one value only"
    x = images()
    x[:, 1] = 0.0
    assert "channel 1 of 3" in one(audit_calibration(net(), [x]), "constant channel").message


@pytest.mark.parametrize(
    ("change", "severity"),
    [(lambda x: 255 * pixels(x), "error"), (pixels, "warning"), (lambda x: x + 2, "warning")],
)
def test_another_normalization_than_in_training(change: Any, severity: str) -> None:
    x = change(images())
    for audit in both([x], calibrated_on=x):
        found = one(audit, "input normalization")
        assert found.severity == severity
        assert "input" in found.where
        assert f"{float(x.min()):.4g}" in found.message


def test_batch_norms_that_saw_no_data_say_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    x = 100 * images()
    assert audit_calibration(model, [x])
    assert audit_calibration(simulated(model, x), [x])


def test_channels_that_are_never_active() -> None:
    model, x = net(), images()
    norm: Any = model.get_submodule("4")
    with torch.no_grad():
        norm.bias[2] = -50.0
    # at the batch norm: its own statistics say that the channel is dead, and so it is
    assert audit_calibration(model, [x])
    conv: Any = nn.Conv2d(3, 8, 3)
    plain = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        conv.bias[2] = -50.0
    for audited in (plain, simulated(plain, x)):
        found = one(audit_calibration(audited, [x]), "inactive channels")
        assert found.message == "1 of 8 channels are never active for any input in its range: 2"
    dark = audit_calibration(net(), [x * 0.05 - 1.5])
    assert "though training had values there" in one_of(dark, "inactive channels").message


def one_of(audit: CalibrationAudit, kind: str) -> Finding:
    return next(f for f in audit.findings if f.kind == kind)


def test_values_that_the_grid_clips() -> None:
    x = images()
    sim = simulated(net(), x)
    assert audit_calibration(sim, [x])
    audit = audit_calibration(sim, [1.6 * x])
    shares = {f.where: f.message for f in audit.findings if f.kind == "clipped values"}
    stub = next(message for where, message in shares.items() if "stub" in where)
    ends = (float(x.min()), float(x.max()))
    step = (ends[1] - ends[0]) / 255
    beyond = ((1.6 * x < ends[0] - step) | (1.6 * x > ends[1] + step)).double().mean()
    assert float(stub.partition("%")[0]) == pytest.approx(100 * float(beyond), abs=1.0)


def test_a_band_far_from_zero() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    x = images() + 40
    for audited in (model, simulated(model, x)):
        found = one(audit_calibration(audited, [x]), "narrow band")
        used = int(found.message.split(": ")[-1].split()[0])
        share = float((x.max() - x.min()) / x.max())
        assert used == pytest.approx(share * 255, abs=2)


def test_a_gate_whose_range_is_given_may_be_narrow() -> None:
    conv: Any = nn.Conv2d(3, 8, 3)
    gated = nn.Sequential(conv, nn.Sigmoid(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        conv.weight.mul_(0.01)  # about one half everywhere
    assert audit_calibration(simulated(gated, images()), [images()])


def test_data_that_are_not_finite() -> None:
    x = images().clone()
    x[3, 0, 0, 0] = torch.nan
    x[40:42] = torch.inf
    for audit in both(x.split(16)):
        found = [f.message for f in audit.severe]
        assert "1 of 64 samples hold NaN" in found
        assert "2 of 64 samples hold infinity" in found
        assert kinds(audit) <= {"not finite data", "duplicate samples", "constant samples"}


def test_masks_may_be_infinite_and_values_inside_may_not() -> None:
    class Scores(nn.Module):
        def __init__(self, *, bad: bool) -> None:
            super().__init__()
            self.fc, self.bad = nn.Linear(4, 4), bad

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y: Tensor = self.fc(x)
            found = (y / (y - y) if self.bad else y) + mask
            return found.softmax(-1) if not self.bad else self.fc(found)

    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(64, 4)
    mask[:, 3] = -torch.inf
    assert audit_calibration(Scores(bad=False).eval(), [(x, mask)])
    found = audit_calibration(Scores(bad=True).eval(), [(x, 0 * x)])
    assert "test_calibration_audit.py:" in one_of(found, "not finite values").where


def test_integers_that_no_int32_holds() -> None:
    x = torch.rand(64, 70_000, generator=torch.Generator().manual_seed(0))
    wide = nn.Linear(70_000, 1).eval()
    with torch.no_grad():
        wide.weight.fill_(1.0)
        wide.bias.zero_()
    audit = audit_calibration(simulated(nn.Sequential(wide), x), [x])
    assert one(audit, "int32 accumulator").severity == "error"
    assert audit.bounds[0].calibrated == pytest.approx(70_000 * 127 * 255, rel=0.01)
    assert audit.bounds[0].worst_case > audit.bounds[0].calibrated > INT32

    small = nn.Linear(8, 2).eval()
    x = x[:, :8]
    sim = simulated(nn.Sequential(small), x)
    assert audit_calibration(sim, [x])
    with torch.no_grad():
        sim.model.get_submodule("0").bias.fill_(1e6)  # type: ignore[operator]
    assert one(audit_calibration(sim, [x]), "int32 bias").severity == "error"


def test_bounds_hold_for_every_input_on_the_grid() -> None:
    torch.manual_seed(1)
    sim = simulated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), images())
    (bound,) = audit_calibration(sim, [images()]).bounds
    conv: Any = sim.model.get_submodule("0")
    source: Any = next(q for n, q in sim.named_quantizers() if "stub" in n).get_encodings()
    weight = conv.param_quantizers["weight"].get_encodings()
    ints = weight.quantize(conv.weight.detach()).double()
    bias = conv.bias.detach().double() / (weight.scale.flatten().double() * float(source.scale))
    x0, x1 = float(source.qmin + source.offset), float(source.qmax + source.offset)
    worst = torch.where(ints > 0, x1, x0)  # the patch that makes the largest sum
    top = (ints * worst).sum((1, 2, 3)) + bias
    low = (ints * (x0 + x1 - worst)).sum((1, 2, 3)) + bias
    assert bound.calibrated == pytest.approx(float(torch.maximum(top.abs(), low.abs()).max()))
    assert bound.products == 27


def test_it_reads_data_once_and_takes_labels_and_limits() -> None:
    batches = [(x, torch.zeros(16)) for x in images(64).split(16)]
    seen = []

    def loader() -> Any:
        for batch in batches:
            seen.append(1)
            yield batch

    sim = simulated(net(), images())
    audit = audit_calibration(sim, loader(), samples=16)
    assert (len(seen), audit.samples) == (4, 64)
    data = json.loads(audit.to_json())
    assert data["findings"] == []
    assert data["bounds"][0]["products"] == 27
    assert audit_calibration(net(), loader(), dummy_input=images(4))
    assert audit_calibration(net(), loader()).samples == 64


@pytest.mark.parametrize(("data", "code"), [(None, "FXQ443"), ([], "FXQ442"), (iter([]), "FXQ442")])
def test_a_float_model_without_data(data: Any, code: str) -> None:
    with pytest.raises(CalibrationError, match=code):
        audit_calibration(net(), data)


def test_mistakes() -> None:
    with pytest.raises(CalibrationError, match="FXQ442"):
        audit_calibration(simulated(net(), images()), [])
    with pytest.raises(CalibrationError, match="FXQ483"):
        audit_calibration(simulated(net(), images()), [torch.zeros(2, 5, 12, 12)])


_FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    made.train()
    with torch.no_grad():
        made(torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    return made.eval()

def right():
    return [torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(2))] * 2

def wrong():
    return [255 * x for x in right()]
"""


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("data", ["right", "wrong"])
def test_the_command_warns_of_data_that_make_ranges_useless(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(_FACTORY)
    monkeypatch.chdir(tmp_path)
    given = ["quantize", "net.py:net", "--calibration", f"net.py:{data}", "--out", "out"]
    result = CliRunner().invoke(main, [*given, "--no-proof", "-q"])
    assert result.exit_code == 0, result.output
    warned = [line for line in result.stderr.splitlines() if line.startswith("warning: error: ")]
    assert len(warned) == (data == "wrong")
    assert all("input normalization" in line for line in warned)
