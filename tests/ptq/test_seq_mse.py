"""Sequential MSE: every range is the best of its candidates and frozen, on any grid."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxquant import SeqMseParams, apply_seq_mse
from fxquant.errors import CalibrationError, ConfigError, SelectorError, UncalibratedError
from fxquant.ptq import reconstruct
from fxquant.ptq.solving.candidates import LOSSES, OutputError, best_of
from fxquant.ptq.solving.grids import WeightGrid
from fxquant.ptq.techniques import seq_mse
from fxquant.sim import QuantizationSimModel
from tests.helpers.techniques import (
    blocked,
    images,
    normed,
    parameters,
    same,
    scales,
    shifting_chip,
    simulation,
    sqnr,
    weight_quantizers,
)

DATA = images()
SYMMETRIES = ("symqt", "symfp", "asym")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_outputs_come_nearer_and_ranges_are_frozen(bits: int) -> None:
    net = normed()
    sim = simulation(net, DATA, bits)
    before, weights = sqnr(net, sim, DATA), parameters(sim)
    report = apply_seq_mse(sim, DATA)
    assert sqnr(net, sim, DATA) > before + (0.5 if bits < 8 else -0.1)
    assert [r.path for r in report.layers] == ["stem", "depthwise", "point", "head"]
    assert all(r.error_after <= r.error_before and r.bitwidth == bits for r in report.layers)
    assert all(torch.equal(weights[f"{r.path}.weight"], sim.model.get_parameter(f"{r.path}.weight"))
               for r in report.layers)  # fmt: skip
    chosen = scales(sim)
    sim.compute_encodings(DATA)
    assert same(chosen, scales(sim))


@pytest.mark.parametrize(("kind", "symmetry"), list(itertools.product(LOSSES, SYMMETRIES)))
def test_every_loss_and_symmetry(kind: Any, symmetry: Any) -> None:
    net = normed()
    sim = simulation(net, DATA, 3)
    params = SeqMseParams(loss_fn=kind, inp_symmetry=symmetry, num_candidates=10)
    report = apply_seq_mse(sim, DATA, params=params)
    assert all(r.error_after <= r.error_before for r in report.layers)
    assert any(r.error_after < r.error_before for r in report.layers)
    assert f"  {kind}" in str(report)


def test_one_range_for_a_tensor_powers_of_two_and_blocks() -> None:
    net = normed()
    sim = simulation(net, DATA, 4, config={"per_channel": False})
    before = sqnr(net, sim, DATA)
    assert all(r.ranges == 1 for r in apply_seq_mse(sim, DATA).layers)
    assert sqnr(net, sim, DATA) > before
    sim = simulation(net, DATA, 4, target=shifting_chip())
    apply_seq_mse(sim, DATA)
    for scale in scales(sim).values():
        assert bool((torch.frexp(scale).mantissa == 0.5).all())
    for grouped in (False, True):
        torch.manual_seed(0)
        _, sim, rows = blocked(grouped=grouped)
        report = apply_seq_mse(sim, rows)
        assert report.layers[0].ranges == 32
        assert report.layers[0].error_after < report.layers[0].error_before


def test_frozen_and_excluded_layers_stay_and_the_engine_works_on_what_was_chosen() -> None:
    net = normed()
    sim = simulation(net, DATA, 4)
    quantizers = weight_quantizers(sim)
    quantizers["stem"].allow_overwrite(False)
    before = scales(sim)
    report = apply_seq_mse(sim, DATA, modules_to_exclude=["head"])
    assert [r.path for r in report.layers] == ["depthwise", "point"]
    assert report.skipped == {"stem": "its range is frozen", "head": "it is excluded"}
    for name in ("stem", "head"):
        assert torch.equal(scales(sim)[name], before[name])
    assert "head: left as it was, it is excluded" in str(report)
    chosen, seen = scales(sim)["point"], sqnr(net, sim, DATA)
    reconstruct(sim, DATA)
    assert torch.equal(scales(sim)["point"], chosen)
    assert sqnr(net, sim, DATA) > seen + 3


def test_batches_can_be_counted_and_called_by_a_function() -> None:
    labelled = [(x, torch.zeros(len(x))) for x in DATA]
    sims = [simulation(normed(), DATA, 3) for _ in range(2)]
    first = apply_seq_mse(sims[0], labelled, params=SeqMseParams(num_batches=2))
    forward = lambda model, batch: model(batch[0])  # noqa: E731
    second = apply_seq_mse(sims[1], labelled, 20, forward, params=SeqMseParams(num_batches=2))
    assert first.cost.samples == second.cost.samples == 64
    assert same(parameters(sims[0]), parameters(sims[1]))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ([], "FXQ442"),
        (7, "FXQ443"),
        ([{"y": 1}], "FXQ444"),
        ([DATA[0], DATA[0] * torch.nan], "FXQ445"),
        ([torch.full((2, 3, 10, 10), torch.inf)], "FXQ446"),
        ([torch.zeros(2, 5, 10, 10)], "FXQ441"),
    ],
)
def test_bad_data_are_refused_and_nothing_is_changed(data: Any, code: str) -> None:
    sim = simulation(normed(), DATA, 4)
    before = parameters(sim)
    with pytest.raises(CalibrationError, match=code):
        apply_seq_mse(sim, data)
    assert same(before, parameters(sim))
    assert all(q.overwritable for q in weight_quantizers(sim).values())


def test_one_sample_and_other_batch_sizes() -> None:
    for data in ([DATA[0][:1]], [DATA[0], DATA[1][:5]], DATA[0]):
        report = apply_seq_mse(simulation(normed(), DATA, 4), data)
        assert all(r.error_after <= r.error_before for r in report.layers)


def test_wrong_arguments_are_refused() -> None:
    net = normed()
    sim = simulation(net, DATA)
    with pytest.raises(ConfigError, match="FXQ297"):
        apply_seq_mse(net, sim, DATA)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="FXQ296"):
        apply_seq_mse(sim, DATA, 0)
    with pytest.raises(ConfigError, match="FXQ299"):
        SeqMseParams(loss_fn="mae")  # type: ignore[arg-type]
    with pytest.raises(SelectorError, match="FXQ213"):
        apply_seq_mse(sim, DATA, modules_to_exclude=["nothing"])
    with pytest.raises(UncalibratedError, match="FXQ401"):
        apply_seq_mse(QuantizationSimModel(net, DATA[0]), DATA)


@pytest.mark.parametrize("bits", [4, 8])
def test_one_sample_does_not_decide_against_all_others(bits: int) -> None:
    """Of one sample, steps that clip nearly all of a weight look best: 5 to 8 dB were lost."""
    torch.manual_seed(0)
    layers = (nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    net = nn.Sequential(*layers).eval()
    one, others = torch.randn(1, 16), [torch.randn(256, 16)]
    sim = QuantizationSimModel(net, one, default_param_bw=bits)
    sim.compute_encodings([one])
    before = sqnr(net, sim, others)
    apply_seq_mse(sim, [one])
    assert sqnr(net, sim, others) > before - 0.5


def test_ranges_stay_if_the_outputs_lose_though_layers_gain() -> None:
    torch.manual_seed(12)
    net, sim, rows = blocked(grouped=True)
    before, ranges = sqnr(net, sim, rows), scales(sim)
    report = apply_seq_mse(sim, rows)
    assert report.inp_symmetry is None
    assert "the outputs did not gain" in str(report)
    assert all(r.changed == 0 and r.error_after == r.error_before for r in report.layers)
    assert same(ranges, scales(sim))
    assert sqnr(net, sim, rows) == before


def test_where_outputs_lose_errors_of_layers_before_are_made_up_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = normed()
    given, wanted = simulation(net, DATA, 3), simulation(net, DATA, 3)
    apply_seq_mse(wanted, DATA, params=SeqMseParams(inp_symmetry="asym"))
    said = iter((torch.tensor([2.0, 1.0]), torch.tensor([1.0, 2.0])))
    monkeypatch.setattr(seq_mse, "output_errors", lambda *_, **__: next(said))
    report = apply_seq_mse(given, DATA)
    assert report.inp_symmetry == "asym"
    assert same(scales(given), scales(wanted))


@st.composite
def problems(draw: st.DrawFn) -> tuple[OutputError, Tensor, WeightGrid]:
    groups, outs, ins = (draw(st.integers(1, n)) for n in (2, 4, 8))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    weight = torch.randn(groups, outs, ins, generator=rng).double()
    x = torch.randn(groups, 30, ins, generator=rng).double()
    exact = x + 0.1 * torch.randn(x.shape, generator=rng) if draw(st.booleans()) else None
    block = draw(st.sampled_from([None, 2]))
    grid = WeightGrid.uniform(
        weight, draw(st.integers(2, 5)), per_row=draw(st.booleans()), block=block
    )
    error = OutputError(x, weight, exact, grid.blocks, draw(st.sampled_from(LOSSES)))
    return error, weight, grid


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 12))
def test_the_best_candidate_of_every_range_is_taken(
    problem: tuple[OutputError, Tensor, WeightGrid], count: int
) -> None:
    error, weight, grid = problem
    found, before, after = best_of(weight, grid, count, error)
    assert after <= before + 1e-12

    def by_range(scale: Tensor) -> Tensor:
        tried = grid.with_scale(scale)
        losses = error(tried.weight(tried.nearest(weight)))
        return torch.stack([grid.by_rows(part) for part in losses.unbind(-1)], 1)

    least = by_range(found.scale)
    for i in range(count):
        assert bool((least <= by_range(grid.covering(weight) * (i + 1) / count) + 1e-9).all())


@settings(max_examples=40, deadline=None)
@given(problems())
def test_the_error_is_that_of_the_outputs(problem: tuple[OutputError, Tensor, WeightGrid]) -> None:
    error, weight, grid = problem
    tried = grid.weight(grid.nearest(weight))
    found = error(tried)
    exact = error.x if error.exact is None else error.exact
    for block in range(grid.scale.shape[1]):
        own = grid.blocks == block
        wanted = exact[:, :, own] @ weight[:, :, own].mT
        left = error.x[:, :, own] @ tried[:, :, own].mT - wanted
        want = {
            "l1": left.abs().mean(1),
            "mse": left.square().mean(1),
            "sqnr": -10 * torch.log10(
                wanted.square().mean(1).clamp(min=1e-10) / (left.square().mean(1) + 1e-10)
            ),
        }[error.kind]  # fmt: skip
        torch.testing.assert_close(found[..., block], want)


def test_the_weight_counts_as_inputs_spread_over_all_directions_would() -> None:
    """Rows of such inputs beside the given ones give the same error."""
    rng = torch.Generator().manual_seed(0)
    x, wanted, weight = (torch.randn(1, n, 6, generator=rng).double() for n in (3, 4, 4))
    blocks, ridge = torch.zeros(6, dtype=torch.int64), 0.7
    found = OutputError(x, wanted, None, blocks, "mse", ridge)(weight)
    spread = torch.eye(6).double()[None] * (ridge * x.square().mean() * 3).sqrt()
    more = OutputError(torch.cat([x, spread], 1), wanted, None, blocks)(weight) * (9 / 3)
    torch.testing.assert_close(found, more)
