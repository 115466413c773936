"""Fast fine-tuning: never worse than before, from the engine's result, refined where it pays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxquant
from fxquant import QuantizationSimModel
from fxquant.errors import CalibrationError, ConfigError, UncalibratedError
from fxquant.ptq import DataOptions, FinetuneParams, fast_finetune, reconstruct
from fxquant.ptq.solving.gradient_rounding import Rows
from fxquant.ptq.solving.grids import WeightGrid
from fxquant.ptq.solving.refinement import Refined, RefinementOptions, refine
from fxquant.ptq.techniques.fast_finetune import _best
from fxquant.ptq.techniques.output_error import OutputErrors, output_errors
from tests.helpers.techniques import (
    blocked,
    images,
    normed,
    on_its_grid,
    parameters,
    same,
    scales,
    shifting_chip,
    simulation,
    sqnr,
)

if TYPE_CHECKING:
    from pathlib import Path

DATA = images(count=192, batch=16)
QUICK = FinetuneParams(refinement=RefinementOptions(iterations=60, batch=512))


@pytest.mark.parametrize("bits", [2, 4])
def test_outputs_come_nearer_and_the_file_keeps_its_proof(bits: int, tmp_path: Path) -> None:
    net, unseen = normed(), images(count=128, seed=7)
    sim, other = (simulation(net, DATA, bits) for _ in range(2))
    before = sqnr(net, sim, unseen)
    report = fast_finetune(sim, DATA, QUICK)
    assert sqnr(net, sim, unseen) > before + 4
    assert on_its_grid(sim)
    assert [r.path for r in report.layers] == ["stem", "depthwise", "point", "head"]
    assert [bool(r.activation) for r in report.layers] == [True, True, True, False]
    assert all(r.error_after <= r.error_before for r in report.layers)
    assert report.held_batches == 1
    errors = {k: getattr(report, k) for k in ("engine", "finetuned")} | {"nothing": report.before}
    now = output_errors(sim.model, DATA[-1:], DataOptions())
    assert now == errors[report.kept]
    assert now.is_no_worse(report.before)
    assert now.total <= report.engine.total or not report.engine.is_no_worse(report.before)
    assert f"kept: {report.kept}" in str(report)
    reconstruct(other, DATA[:-1])  # without the batch that is held out
    assert sqnr(net, sim, unseen) > sqnr(net, other, unseen) - 0.5
    sim.compute_encodings(DATA)  # ranges of weights stay
    assert on_its_grid(sim)
    assert sim.export(tmp_path, "net")


def test_what_is_worse_on_batches_held_out_is_undone() -> None:
    """Batches held out that are nothing like the others: what was learned misleads there."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        narrow = [torch.randn(32, 2) @ torch.randn(2, 16) + 2 for _ in range(4)]
        wide = torch.randn(64, 16) * 2 - 2
    data = [*narrow, wide]
    sim = simulation(net, data, 6)
    before, state = parameters(sim), output_errors(sim.model, [wide], DataOptions())
    report = fast_finetune(sim, data, QUICK)
    now = output_errors(sim.model, [wide], DataOptions())
    assert now.is_no_worse(state)
    assert report.engine.total > state.total
    assert report.kept == "nothing"
    assert same(parameters(sim), before)
    assert all(q.overwritable for n, q in sim.named_quantizers() if "param" in n)


def test_the_best_state_that_is_no_worse_anywhere_is_kept() -> None:
    start = OutputErrors((0.4, 0.2))
    better, mixed = OutputErrors((0.3, 0.1)), OutputErrors((0.0, 0.21))
    assert _best({"nothing": start, "engine": better, "finetuned": mixed}, start) == "engine"
    assert _best({"nothing": start, "engine": mixed, "finetuned": mixed}, start) == "nothing"
    assert _best({"nothing": start, "engine": better, "finetuned": better}, start) == "engine"


def test_frozen_scales_and_powers_of_two_stay() -> None:
    net = normed()
    sim = simulation(net, DATA, 4)
    for _, q in sim.named_quantizers():
        q.allow_overwrite(False)
    before, db = scales(sim), sqnr(net, sim, DATA)
    fast_finetune(sim, DATA, QUICK)
    assert same(before, scales(sim))
    assert sqnr(net, sim, DATA) > db + 1
    sim = simulation(net, DATA, 5, target=shifting_chip())
    fast_finetune(sim, DATA, QUICK)
    assert on_its_grid(sim)
    for scale in scales(sim).values():
        assert bool((torch.frexp(scale).mantissa == 0.5).all())


@pytest.mark.parametrize("grouped", [False, True])
def test_blocks(grouped: bool) -> None:
    model, sim, rows = blocked(grouped=grouped)
    before = sqnr(model, sim, rows)
    fast_finetune(sim, rows, QUICK)
    assert sqnr(model, sim, rows) > before + 3
    assert on_its_grid(sim)


def test_excluded_layers_are_left_to_the_engine_and_one_batch_judges_itself() -> None:
    sim = simulation(normed(), DATA, 3)
    report = fast_finetune(sim, torch.cat(DATA), QUICK, modules_to_exclude=["stem", "head"])
    assert [r.path for r in report.layers] == ["depthwise", "point"]
    assert report.skipped == {"stem": "it is excluded", "head": "it is excluded"}
    assert report.held_batches == 0
    assert "outputs on the same batch" in str(report)


def test_the_same_data_give_the_same_result() -> None:
    sims = [simulation(normed(), DATA, 3) for _ in range(2)]
    for sim in sims:
        fast_finetune(sim, DATA, QUICK)
    assert same(parameters(sims[0]), parameters(sims[1]))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ([], "FXQ442"),
        (7, "FXQ443"),
        ([{"y": 1}, {"y": 1}], "FXQ444"),
        ([DATA[0], DATA[0] * torch.nan, DATA[0]], "FXQ445"),
        ([torch.full((2, 3, 10, 10), torch.inf)], "FXQ446"),
        ([torch.zeros(2, 5, 10, 10)], "FXQ441"),
    ],
)
def test_bad_data_are_refused_and_nothing_is_changed(data: Any, code: str) -> None:
    sim = simulation(normed(), DATA, 4)
    before = parameters(sim)
    with pytest.raises(CalibrationError, match=code):
        fast_finetune(sim, data, QUICK)
    assert same(before, parameters(sim))


def test_one_sample_and_other_batch_sizes() -> None:
    for data in ([DATA[0][:1]], [DATA[0], DATA[1][:5]]):
        sim = simulation(normed(), DATA, 4)
        fast_finetune(sim, data, QUICK)
        assert on_its_grid(sim)


def test_wrong_arguments_are_refused() -> None:
    net, tune = normed(), fxquant.fast_finetune
    wrong: Any = net
    with pytest.raises(ConfigError, match="FXQ297"):
        tune(wrong, DATA)
    for name, value in (("rate", -1), ("scale_rate", "a"), ("bias_rate", float("nan"))):
        options: dict[str, Any] = {name: value}
        with pytest.raises(ConfigError, match="FXQ208"):
            FinetuneParams(refinement=RefinementOptions(**options))
    with pytest.raises(ConfigError, match="FXQ296"):
        FinetuneParams(refinement=RefinementOptions(iterations=0))
    with pytest.raises(CalibrationError, match="FXQ455"):
        tune(simulation(net, DATA), DATA, FinetuneParams(num_batches=99))
    with pytest.raises(UncalibratedError, match="FXQ401"):
        tune(QuantizationSimModel(net, DATA[0]), DATA)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Refined, Tensor, Rows, Rows]:
    groups, outs, ins = (draw(st.integers(1, n)) for n in (2, 4, 8))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    weight = torch.randn(groups, outs, ins, generator=rng)
    bias = torch.randn(groups, outs, generator=rng)
    activation = draw(st.sampled_from([None, F.relu]))
    rows = []
    for _ in range(2):
        x = torch.randn(groups, 40, ins, generator=rng)
        rows.append(Rows(x, torch.baddbmm(bias[:, None], x, weight.mT), bias, activation))
    block = draw(st.sampled_from([None, 2]))
    bits, per_row = draw(st.integers(2, 4)), draw(st.booleans())
    grid = WeightGrid.uniform(weight, bits, per_row=per_row, block=block)
    least = grid.scale * 0.98 if draw(st.booleans()) else None
    grid = WeightGrid(
        grid.scale, grid.low, grid.high, grid.rows, grid.blocks,
        frozen=draw(st.booleans()), least=least,
    )  # fmt: skip
    return Refined(grid.nearest(weight), grid, bias, 0.0), weight, rows[0], rows[1]


@settings(max_examples=30, deadline=None)
@given(problems(), st.booleans())
def test_refinement_is_never_worse_and_stays_on_the_grid(
    problem: tuple[Refined, Tensor, Rows, Rows], biased: bool
) -> None:
    start, wish, seen, held = problem
    options = RefinementOptions(iterations=20, rate=0.05, batch=16, bias_rate=0.05 * biased)
    found = refine(start, wish, seen, held, options)
    losses = [
        float(held.loss(r.grid.weight(r.integers), r.bias).sum()) for r in (start, found)
    ]  # fmt: skip
    assert losses[1] <= losses[0]
    assert found.loss == pytest.approx(losses[1])
    grid = found.grid
    assert torch.equal(found.integers, found.integers.round())
    assert bool((found.integers >= grid.spread(grid.low)).all())
    assert bool((found.integers <= grid.spread(grid.high)).all())
    if grid.frozen:
        assert torch.equal(grid.scale, start.grid.scale)
    if grid.least is not None:
        assert bool((grid.scale >= grid.least).all())
    if not biased:
        assert torch.equal(found.bias, start.bias)


def test_refinement_finds_a_step_and_a_bias_that_were_spoiled() -> None:
    rng = torch.Generator().manual_seed(0)
    integers = torch.randint(-7, 8, (1, 3, 6), generator=rng).float()
    x = torch.randn(1, 400, 6, generator=rng)
    exact, bias = 0.1 * integers, torch.randn(1, 3, generator=rng)
    rows = Rows(x, torch.baddbmm(bias[:, None], x, exact.mT), bias, F.relu)
    grid = WeightGrid.uniform(exact, 4).with_scale(torch.full((3, 1), 0.105))
    start = Refined(integers, grid, bias + 0.05, 0.0)
    options = RefinementOptions(iterations=600, rate=0.0, scale_rate=2e-3)
    found = refine(start, grid.weight(integers), rows, rows, options)
    assert torch.equal(found.integers, integers)
    torch.testing.assert_close(found.grid.scale, torch.full((3, 1), 0.1), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.bias, bias, atol=5e-3, rtol=0)
