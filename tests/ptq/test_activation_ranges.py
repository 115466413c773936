"""Activation ranges by what they cost: better outputs, never worse ones, and what is left alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.errors import CalibrationError, ConfigError, UncalibratedError
from fxquant.ptq import ActivationRangesReport, choose_activation_ranges, reconstruct
from fxquant.ptq.activation_ranges.outputs import kept_parts
from fxquant.quantization import affine
from fxquant.quantization.analyzers import Entropy, Percentile


class Outliers(nn.Module):
    """A layer that looks away from the channel with large values: clipping it costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)
        with torch.no_grad():
            self.first.weight[0] *= 50.0
            self.last.weight[:, 0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))  # type: ignore[no-any-return]


def data(count: int = 6, rows: int = 32, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(rows, *(shape or (8,)), generator=generator) for _ in range(count)]


def sim_of(model: nn.Module, batches: list[Any], scheme: str = "min_max", **options: Any) -> Any:
    sim = QuantizationSimModel(model.eval(), batches[0], scheme, **options)
    sim.compute_encodings(batches)
    return sim


def decibels(model: nn.Module, sim: QuantizationSimModel, batches: list[Tensor]) -> float:
    with torch.no_grad():
        real = torch.cat([model(x) for x in batches])
        ours = torch.cat([sim.model(x) for x in batches])
    return float(10 * torch.log10(real.square().sum() / (real - ours).square().sum()))


def ends(sim: QuantizationSimModel) -> dict[str, tuple[float, float]]:
    return {
        name: (q.min.item(), q.max.item())
        for name, q in sim.named_quantizers()
        if isinstance(q, affine.QuantizeDequantize) and not q.shape
    }


def test_a_channel_that_nothing_looks_at_is_clipped() -> None:
    torch.manual_seed(0)
    model, batches = Outliers(), data()
    sim = sim_of(model, batches, default_output_bw=6)
    before = decibels(model, sim, batches)
    report = choose_activation_ranges(sim, batches)
    (row,) = (r for r in report.ranges if r.name == "act.output_quantizers.0")
    assert row.after[1] < 0.3 * row.before[1]
    assert row.cost_after < 0.1 * row.cost_before
    assert decibels(model, sim, data(3)) > before + 6
    assert report.sqnr_after > report.sqnr_before + 6
    assert report.held_out == 1
    assert report.samples == 192
    text = str(report)
    assert "act), tests/ptq" in text
    assert "dB of the float model's" in text
    assert report.to_dict()["ranges"][0]["tensor"] == "the output of x"


@pytest.mark.parametrize("scheme", ["min_max", "tf_enhanced", "mse", "percentile"])
def test_outputs_are_never_worse(scheme: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    batches = data(8, 8, 3, 8, 8)
    sim = sim_of(model, batches, scheme, default_output_bw=4)
    before = decibels(model, sim, batches)
    report = choose_activation_ranges(sim, batches)
    after = decibels(model, sim, batches)
    assert after >= before
    assert (report.sqnr_before, report.sqnr_after) == pytest.approx((before, after), abs=0.01)


def test_changes_that_do_not_help_the_output_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates may be wrong: here all of them are, and every range is as it was."""
    from fxquant.ptq.activation_ranges import choose_ranges

    def lies(*_: Any, **__: Any) -> str:
        for grid in grids:
            grid.costs[:] = torch.arange(len(grid.tries), 0, -1)
        return ""

    grids: list[Any] = []
    new = choose_ranges._Choosing._new

    def kept(self: Any, *args: Any) -> Any:
        grids.append(new(self, *args))
        return grids[-1]

    monkeypatch.setattr(choose_ranges, "add_costs", lies)
    monkeypatch.setattr(choose_ranges._Choosing, "_new", kept)
    torch.manual_seed(0)
    batches = data()
    sim = sim_of(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), batches)
    before = ends(sim)
    report = choose_activation_ranges(sim, batches, candidates=("min_max", 0.3, 0.2))
    assert len(report.undone) == len(grids) == 2
    assert ends(sim) == before
    assert report.sqnr_after == report.sqnr_before
    assert "put back" in str(report)


class Joined(nn.Module):
    """Both operands of the concatenation and its result lie on one grid."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.last(torch.cat([a, self.b(a)], 1))  # type: ignore[no-any-return]


def test_only_gains_that_other_data_confirm_and_that_count_are_taken() -> None:
    """All changes lower the error of activations; one by chance, one by next to nothing, and one
    makes the outputs worse that rounded weights give."""
    by_chance = torch.randn(64, generator=torch.Generator().manual_seed(0))
    by_chance += 0.05 - by_chance.mean()
    everywhere = torch.full((64,), 0.05)
    gains = {"good": everywhere, "by chance": by_chance, "tiny": everywhere / 10, "bad": everywhere}
    made: set[str] = set()

    class Check:
        def activation_errors(self) -> Tensor:
            return torch.ones(64) - sum((gains[n] for n in made), torch.zeros(64))

        def errors(self) -> Tensor:
            return self.activation_errors() + (0.1 if "bad" in made else 0.0)

    def put(change: str, *, made: bool, among: set[str] = made) -> None:
        (among.add if made else among.discard)(change)

    for name in gains:
        made.clear()
        kept, before, after = kept_parts([name], put, Check(), Check())  # type: ignore[arg-type]
        assert kept == (["good"] if name == "good" else [])
        assert made == set(kept)
        assert before == 64
        assert after == pytest.approx(60.8 if kept else 64)


def test_ranges_of_many_bits_stay_beside_the_noise_of_weights() -> None:
    """A narrower range gains nothing that can be seen, and clips what the data do not show."""
    torch.manual_seed(0)
    batches = data()
    sim = sim_of(Outliers(), batches, default_output_bw=16, default_param_bw=4)
    before = ends(sim)
    report = choose_activation_ranges(sim, batches)
    assert ends(sim) == before
    assert report.sqnr_after == report.sqnr_before


def test_values_on_one_grid_have_one_range() -> None:
    torch.manual_seed(2)
    batches = data(4, 8, 3, 6, 6)
    sim = sim_of(Joined(), batches, default_output_bw=4)
    shared = {id(m.output_quantizers[0]) for p, m in sim.named_qmodules() if p in ("a", "b")}
    assert len(shared) == 1
    report = choose_activation_ranges(sim, batches)
    names = [r.name for r in report.ranges]
    assert len(names) == len(set(names)) == 3
    row = next(r for r in report.ranges if r.name == "a.output_quantizers.0")
    assert row.after != row.before
    low, high = sim.model.b.output_quantizers[0].min, sim.model.b.output_quantizers[0].max
    assert (low.item(), high.item()) == row.after


def test_frozen_ranges_and_frozen_ends_stay() -> None:
    torch.manual_seed(0)
    batches = data()
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    sim = sim_of(model, batches, default_output_bw=6)
    act = sim.model.get_submodule("1").output_quantizers[0]
    x = sim.model.get_submodule("input_1_stub").output_quantizers[0]
    act.allow_overwrite(False)
    x.allow_overwrite(min=False)
    x.set_range(max=30.0)  # far too wide
    before = ends(sim)
    report = choose_activation_ranges(sim, batches)
    assert report.skipped == {"1.output_quantizers.0": "it is frozen"}
    assert ends(sim)["1.output_quantizers.0"] == before["1.output_quantizers.0"]
    found, old = (
        ends(sim)["input_1_stub.output_quantizers.0"],
        before["input_1_stub.output_quantizers.0"],
    )
    assert found[0] == old[0]
    assert found[1] < 5


def test_steps_stay_powers_of_two(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batches = Outliers(), data()
    sim = sim_of(model, batches, target="generic_pof2")
    report = choose_activation_ranges(sim, batches)
    assert any(r.chosen != "as it was" for r in report.ranges)
    for quantizer in sim.quantizers():
        scale = quantizer.get_scale()
        assert scale is not None
        assert bool((torch.frexp(scale).mantissa == 0.5).all())
    assert sim.export(tmp_path, "net", batches[0]).proven


@pytest.mark.parametrize("first", ["ranges", "reconstruct"])
def test_before_and_after_reconstruction(first: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batches = Outliers(), data(8)
    sim = sim_of(model, batches, default_output_bw=6, default_param_bw=4)
    before = decibels(model, sim, batches)
    steps: list[Callable[..., object]] = [choose_activation_ranges, reconstruct]
    for step in steps if first == "ranges" else reversed(steps):
        step(sim, batches)
    assert decibels(model, sim, batches) > before + 3
    assert sim.export(tmp_path, "net", batches[0]).proven


def test_a_model_whose_output_has_no_gradient() -> None:
    class Labels(Outliers):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    batches = data()
    sim = sim_of(Labels(), batches)
    before = ends(sim)
    report = choose_activation_ranges(sim, batches)
    assert ends(sim) == before
    assert "nothing was changed: the outputs have no gradients" in str(report)


def test_the_simulation_is_otherwise_as_it_was() -> None:
    torch.manual_seed(0)
    batches = data()
    sim = sim_of(Outliers(), batches, default_output_bw=4)
    sim.model.train()
    weights = {n: p.clone() for n, p in sim.model.named_parameters() if "quantizers" not in n}
    names = [n for n, _ in sim.named_quantizers()]
    learn = [p.requires_grad for p in sim.model.parameters()]
    threads = torch.get_num_threads()
    choose_activation_ranges(sim, iter(batches))
    assert sim.model.training
    assert torch.get_num_threads() == threads
    assert [n for n, _ in sim.named_quantizers()] == names
    assert [p.requires_grad for p in sim.model.parameters()] == learn
    assert all(p.grad is None for p in sim.model.parameters())
    for name, value in weights.items():
        assert torch.equal(sim.model.get_parameter(name), value), name


def test_memory_is_limited_and_the_result_the_same() -> None:
    reports: list[ActivationRangesReport] = []
    for limit in (None, 40_000):
        torch.manual_seed(3)
        batches = data(6, 16, 3, 8, 8)
        sim = sim_of(Joined(), batches, default_output_bw=4)
        reports.append(choose_activation_ranges(sim, batches, max_memory=limit))
    free, limited = reports
    assert free.written_bytes == 0 < limited.written_bytes
    assert limited.peak_bytes < 2 * 40_000 + 40_000 < free.peak_bytes
    assert [r.after for r in free.ranges] == [r.after for r in limited.ranges]


def test_one_batch_is_judged_by_itself() -> None:
    torch.manual_seed(0)
    batches = data(1)
    report = choose_activation_ranges(sim_of(Outliers(), batches, default_output_bw=6), batches[0])
    assert report.held_out == 0
    assert report.sqnr_after > report.sqnr_before
    assert "on the one batch" in str(report)


def test_candidates_of_the_user() -> None:
    torch.manual_seed(0)
    batches = data()
    sim = sim_of(Outliers(), batches, default_output_bw=6)
    report = choose_activation_ranges(sim, batches, candidates=(Percentile(80), Entropy(), 0.5))
    assert {r.chosen for r in report.ranges} <= {
        "as it was", "percentile 80", "Entropy", "0.5 of min_max",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"candidates": ()}, "FXQ293"), ({"candidates": "mse"}, "FXQ293"),
        ({"candidates": (1.5,)}, "FXQ293"), ({"candidates": (True,)}, "FXQ293"),
        ({"candidates": (["mse"],)}, "FXQ293"),
        ({"samples": 0}, "FXQ294"), ({"held_out": 1}, "FXQ294"), ({"samples": 2.5}, "FXQ294"),
    ],
)  # fmt: skip
def test_wrong_options(options: dict[str, Any], code: str) -> None:
    batches = data()
    sim = sim_of(Outliers(), batches)
    with pytest.raises(ConfigError, match=code):
        choose_activation_ranges(sim, batches, **options)


def nothing() -> Iterator[Tensor]:
    yield from ()


@pytest.mark.parametrize(
    ("batches", "code"),
    [
        ([], "FXQ442"), (nothing(), "FXQ442"), (3, "FXQ443"), ([{"y": torch.ones(1, 8)}], "FXQ444"),
        ([torch.full((4, 8), math.nan)], "FXQ445"), ([torch.ones(4, 5)], "FXQ441"),
        ([torch.full((4, 8), math.inf)], "FXQ402"),
    ],
)  # fmt: skip
def test_bad_data_leave_everything_as_it_was(batches: Any, code: str) -> None:
    sim = sim_of(Outliers(), data())
    before = ends(sim)
    with pytest.raises(CalibrationError, match=code):
        choose_activation_ranges(sim, batches)
    assert ends(sim) == before


def test_it_must_be_calibrated() -> None:
    sim = QuantizationSimModel(Outliers(), data()[0])
    with pytest.raises(UncalibratedError, match="FXQ401"):
        choose_activation_ranges(sim, data())


def test_rare_values_that_only_the_other_batches_show_are_not_clipped() -> None:
    """One sample in a hundred has large outputs, and none of the batch that is held out."""
    torch.manual_seed(0)
    x = torch.randn(4, 32, 8)
    x[:3, 0] *= 40  # batch 3 is held out
    sim = QuantizationSimModel(
        nn.Sequential(nn.Linear(8, 4)), x[0], "min_max", target="generic_pof2"
    )
    sim.compute_encodings(list(x))
    before = ends(sim)
    report = choose_activation_ranges(sim, list(x))
    assert report.held_out == 1
    assert report.sqnr_after >= report.sqnr_before
    assert ends(sim) == before
