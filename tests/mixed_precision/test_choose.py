"""Mixed precision: what is chosen keeps the accuracy, costs least, and is what runs."""

from __future__ import annotations

import copy
import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel, choose_mixed_precision
from fxquant.errors import ConfigError, FxQuantError
from fxquant.mixed_precision.bit_candidates import candidates_of
from fxquant.mixed_precision.costs import Costs
from fxquant.mixed_precision.groups import Group, find_groups
from fxquant.mixed_precision.trials import Trials
from fxquant.nn import DeQuantStub, QuantStub
from fxquant.precision.sites import find_sites
from fxquant.ptq import reconstruct
from tests.helpers.modules import quantized
from tests.helpers.shipped import Shipped

ROOT = Path(__file__).parents[2]


class Net(nn.Module):
    """A stem, a residual block, a concatenation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.body(x))
        x = torch.cat((self.left(x), self.right(x)), 1)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def made(
    net: nn.Module | None = None, scheme: str = "min_max", **options: Any
) -> tuple[QuantizationSimModel, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    sim = QuantizationSimModel((net or Net()).eval(), x, scheme, **options)
    sim.compute_encodings([x])
    return sim, x


@pytest.fixture(scope="module")
def calibrated() -> tuple[QuantizationSimModel, Tensor]:
    return made()


@pytest.fixture
def sim(calibrated: tuple[QuantizationSimModel, Tensor]) -> QuantizationSimModel:
    return copy.deepcopy(calibrated[0])


@pytest.fixture
def x(calibrated: tuple[QuantizationSimModel, Tensor]) -> Tensor:
    return calibrated[1]


@torch.no_grad()
def decibels(sim: QuantizationSimModel, x: Tensor, plain: nn.Module | None = None) -> float:
    exact = (plain or sim.get_original_model())(x)
    found = torch.as_tensor(sim.model(x))
    return float(10 * torch.log10(exact.square().sum() / (exact - found).square().sum()))


def activations(sim: QuantizationSimModel) -> list[Any]:
    return [q for module in sim.qmodules() for _, q in module.output_quantizers.active()]


def chosen(result: Any) -> list[str]:
    return list(result.chosen.options.values())


def without_numbers(text: str) -> str:
    """The text with measurements replaced; counts and bits stay."""
    text = re.sub(r"-?\d+\.\d+", "#", text)
    return "\n".join(
        re.sub(r" {2,}", "  ", re.sub("-{3,}", "--", line)) for line in text.split("\n")
    )


def test_the_report_compares_float_all_integer_and_chosen(
    sim: QuantizationSimModel, x: Tensor
) -> None:
    result = choose_mixed_precision(
        sim, [(8, 4), (8, 8)], data=[x], allowed_accuracy_drop=12, points=2, trials=0
    )
    assert (
        without_numbers(result.report)
        == """\
  SQNR dB  size kB  G bit operations  latency ms
--  --  --  --  --
float  #  #  #
all integer  #  #  #  #
chosen  #  #  #  #
latency: of one run of the file in onnxruntime, on the example inputs
the drop is within the allowed 12 dB

group  chosen
--  --
stem  A8 W4
body, add  A8 W4
left, right  A8 W8
cat, mean  A8
fc  A8 W8

Pareto front
size kB  SQNR dB  groups
--  --  --
#  #  all A8 W4
#  #  1 x A8, 3 x A8 W4, 1 x A8 W8
#  #  1 x A8, 2 x A8 W4, 2 x A8 W8
#  #  all A8 W8

Most sensitive, quantized alone
group  option  SQNR dB
--  --  --
fc  A8 W4  #
left, right  A8 W4  #
body, add  A8 W4  #
stem  A8 W4  #
fc  A8 W8  #
left, right  A8 W8  #
cat, mean  A8  #
stem  A8 W8  #
body, add  A8 W8  #"""
    )
    assert str(result) == result.report


@pytest.mark.parametrize("drop", [2.0, 6.0, 12.0, 40.0])
@pytest.mark.parametrize("cost", ["size", "bit_operations"])
def test_it_keeps_the_accuracy_at_the_least_cost_of_all_choices(
    sim: QuantizationSimModel, x: Tensor, cost: Any, drop: float
) -> None:
    candidates = [(8, 4), (8, 8)]
    other = copy.deepcopy(sim)
    result = choose_mixed_precision(
        sim, candidates, data=[x], allowed_accuracy_drop=drop, cost=cost, latency=False
    )
    groups, costs = searched(other, x, candidates)
    trials = Trials(other, groups, [x])
    best = float("inf")
    least = decibels(_with(trials, tuple(len(g.options) - 1 for g in groups)), x) - drop
    assert result.met
    assert result.chosen is not None
    assert decibels(sim, x) == pytest.approx(result.chosen.accuracy, abs=1e-3)
    assert result.chosen.accuracy >= least
    of = costs.size if cost == "size" else costs.operations
    rest = costs.rest_size if cost == "size" else costs.rest_operations
    for choice in itertools.product(*(range(len(g.options)) for g in groups)):
        if decibels(_with(trials, choice), x) >= least:
            parts = (of(g, g.options[i]) for g, i in zip(groups, choice, strict=True))
            best = min(best, rest + sum(parts))
    assert result.chosen.cost <= best * (1 + 1e-9)


def searched(sim: QuantizationSimModel, x: Tensor, given: Any) -> tuple[list[Group], Costs]:
    sites = find_sites(sim.model)
    groups = find_groups(sim.model, sim.target, candidates_of(given, sim.target), sites)
    return groups, Costs(sim.model, sites, groups, [x])


def _with(trials: Trials, choice: tuple[int, ...]) -> QuantizationSimModel:
    trials.apply(choice)
    return trials.sim


def test_costs_are_those_of_the_network(sim: QuantizationSimModel, x: Tensor) -> None:
    result = choose_mixed_precision(sim, [(8, 4), (8, 8)], data=[x], latency=False)
    stem, body, side, head = 8 * 3 * 9, 8 * 8 * 9, 2 * 8 * 8, 4 * 16
    biases = 4 * (8 + 8 + 8 + 8 + 4)
    places = 16 * 64
    macs = (stem + body + side) * places + head * 16
    by_label = {p.label: p for p in result.points}
    assert by_label["A8 W4"].size == (stem + body + side + head) / 2 + biases
    assert by_label["A8 W8"].size == stem + body + side + head + biases
    assert by_label["A8 W4"].bit_operations == macs * 8 * 4
    assert result.reference.bit_operations == macs * 32 * 32
    assert result.reference.size == 4 * (stem + body + side + head) + biases


def test_no_drop_asked_for_leaves_the_simulation_as_it_was(
    sim: QuantizationSimModel, x: Tensor
) -> None:
    before, y, why = sim.model.state_dict(), sim.model(x), sim.explain("*")
    before = {k: v.clone() for k, v in before.items()}
    result = choose_mixed_precision(sim, data=[x], cost="bit_operations", latency=False)
    after = sim.model.state_dict()
    assert result.chosen is None
    assert len(result.pareto) >= 2
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert torch.equal(sim.model(x), y)
    assert sim.explain("*") == why


def test_an_error_in_the_middle_leaves_it_as_it_was_too(
    sim: QuantizationSimModel, x: Tensor
) -> None:
    y, calls = sim.model(x), itertools.count()

    def evaluate(model: Any) -> float:
        if next(calls) == 7:
            msg = "out of luck"
            raise RuntimeError(msg)
        return 1.0

    with pytest.raises(RuntimeError, match="out of luck"):
        choose_mixed_precision(sim, evaluate=evaluate, data=[x], allowed_accuracy_drop=0.0)
    assert torch.equal(sim.model(x), y)


def test_what_cannot_be_met_takes_the_most_accurate_and_says_so(
    sim: QuantizationSimModel, x: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    exact = sim.get_original_model()(x)

    def evaluate(model: Any) -> float:
        return -float((torch.as_tensor(model(x)) - exact).square().mean())

    result = choose_mixed_precision(
        sim, [(8, 4), (8, 8)], evaluate, [x], allowed_accuracy_drop=0.0, latency=False
    )
    assert not result.met
    assert chosen(result) == ["A8 W8", "A8 W8", "A8 W8", "A8", "A8 W8"]
    assert "no choice keeps the accuracy" in caplog.text
    assert "no choice stays within the allowed drop of 0" in str(result)


def test_evaluate_decides_and_noise_decides_between_equal_scores(
    sim: QuantizationSimModel, x: Tensor
) -> None:
    labels = sim.get_original_model()(x).argmax(1)

    def evaluate(model: Any) -> float:
        return float((torch.as_tensor(model(x)).argmax(1) == labels).float().mean())

    result = choose_mixed_precision(
        sim, [(8, 2), (8, 4), (8, 8)], evaluate, [x], allowed_accuracy_drop=0.07, latency=False
    )
    assert result.met
    assert result.chosen is not None
    assert evaluate(sim.model) == result.chosen.accuracy >= result.reference.accuracy - 0.07
    assert result.reference.accuracy == 1.0
    ranks = [p.rank for p in result.pareto]
    assert ranks == sorted(ranks)
    for point in result.points:
        better = [p for p in result.pareto if p.cost <= point.cost and p.rank >= point.rank]
        assert better


def test_evaluate_needs_no_data(sim: QuantizationSimModel) -> None:
    result = choose_mixed_precision(
        sim, [(8, 4), (16, 8), (8, 8)], lambda model: 1.0, allowed_accuracy_drop=0.5
    )
    assert chosen(result) == ["A8 W4", "A8 W4", "A8 W4", "A8", "A8 W4"]
    assert all(p.sqnr_db is None for p in result.points)


def test_of_equal_costs_the_lighter_one_is_taken(sim: QuantizationSimModel, x: Tensor) -> None:
    # weights have 8 bits in both: activations of 16 bits only where they are needed
    result = choose_mixed_precision(
        sim, [(16, 8), (8, 8)], data=[x], allowed_accuracy_drop=3, latency=False
    )
    assert result.met
    assert set(chosen(result)) == {"A8", "A8 W8"}


def test_the_file_has_the_chosen_precisions_and_their_proof(
    sim: QuantizationSimModel, x: Tensor, tmp_path: Path
) -> None:
    result = choose_mixed_precision(
        sim, [(8, 4), (16, 4), (16, 8)], data=[x], allowed_accuracy_drop=6, cost="bit_operations",
        latency=False, points=2,
    )  # fmt: skip
    kinds = set(" ".join(chosen(result)).split())
    assert {"A8", "A16", "W4"} <= kinds
    assert sim.export(tmp_path, "net")
    expected = sim.model(x).detach()
    # a tie in a tensor of 8 bits moves one of the 64 places that are averaged in 16 channels
    coarse = max(q.get_scale().item() for q in activations(sim) if q.bitwidth == 8)
    largest = float(sim.model.get_parameter("fc.weight").detach().abs().max())
    for found in Shipped(tmp_path / "net.onnx").run([x]):
        error = (torch.as_tensor(found[0]) - expected).abs().max()
        assert float(error) <= coarse * largest * 16 / 64


def test_latency_is_measured_and_the_fastest_that_is_good_enough_is_taken(
    sim: QuantizationSimModel, x: Tensor
) -> None:
    result = choose_mixed_precision(
        sim, [(8, 4), (8, 8), "float"], data=[x], allowed_accuracy_drop=6, cost="latency", rounds=3,
        points=3,
    )  # fmt: skip
    assert result.met
    assert result.chosen is not None
    assert result.all_integer is not None
    assert all(p.latency == p.cost > 0 for p in result.points)
    assert result.reference.latency is not None
    good = [p for p in result.points if p.accuracy >= result.all_integer.accuracy - 6]
    assert result.chosen.cost == min(p.cost for p in good)


def test_techniques_are_part_of_what_is_judged(sim: QuantizationSimModel, x: Tensor) -> None:
    exact = sim.get_original_model()
    plain = choose_mixed_precision(
        copy.deepcopy(sim), [(8, 3)], data=[x], allowed_accuracy_drop=0, latency=False
    )
    result = choose_mixed_precision(
        sim, [(8, 3)], data=[x], allowed_accuracy_drop=0, latency=False, techniques=[reconstruct],
        points=1,
    )  # fmt: skip
    assert plain.chosen is not None
    assert result.chosen is not None
    assert result.chosen.accuracy > plain.chosen.accuracy + 3
    assert decibels(sim, x, exact) == pytest.approx(result.chosen.accuracy, abs=1e-3)
    assert quantized(sim, "body").param_quantizers["weight"].frozen


def test_frozen_grids_stay(sim: QuantizationSimModel, x: Tensor) -> None:
    q = quantized(sim, "body").param_quantizers["weight"]
    q.allow_overwrite(False)
    low, high = q.min.detach().clone(), q.max.detach().clone()
    result = choose_mixed_precision(
        sim, [(8, 4)], data=[x], allowed_accuracy_drop=100, latency=False
    )
    assert chosen(result) == ["A8 W4", "A8", "A8 W4", "A8", "A8 W4"]
    assert q.bitwidth == 8
    assert torch.equal(q.min, low)
    assert torch.equal(q.max, high)


def test_regions_are_searched_inside_only() -> None:
    region = QuantStub(), nn.Conv2d(4, 4, 3), DeQuantStub()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), *region, nn.Conv2d(4, 2, 3))
    sim, x = made(net)
    result = choose_mixed_precision(
        sim, [(8, 4)], data=[x], allowed_accuracy_drop=100, latency=False
    )
    assert list(result.chosen.options) == ["2", "output of 2"]  # type: ignore[union-attr]


def test_powers_of_two_are_searched_for_every_number_of_bits() -> None:
    sim, x = made(scheme="tf_enhanced", target="generic_pof2")
    other, _ = made(scheme="tf_enhanced", target="generic_pof2", default_output_bw=16)
    result = choose_mixed_precision(
        sim, [(8, 8), (16, 8)], data=[x], allowed_accuracy_drop=0, cost="bit_operations"
    )
    assert {o.split()[0] for o in chosen(result)} == {"A16"}
    assert result.chosen is not None
    assert result.chosen.latency is None
    for path in ("x_stub", "relu", "mean"):
        mine, theirs = (quantized(s, path).output_quantizers[0] for s in (sim, other))
        assert torch.equal(mine.get_scale(), theirs.get_scale()), path


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(self.norm(x))))  # type: ignore[no-any-return]


def test_a_residual_stream_may_be_float_or_wide(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 5, 8)
    net = nn.Sequential(Block(), Block(), nn.Linear(8, 4)).eval()
    rule = {"output": {"quantized": True}}
    config = {"operators": {"add": rule, "linear": rule}}
    sim = QuantizationSimModel(net, x, "min_max", config=config)
    sim.compute_encodings([x])
    result = choose_mixed_precision(
        sim, [(8, 8), "int16_residual", "float_residual"], data=[x], allowed_accuracy_drop=0,
        points=1, trials=0, latency=False,
    )  # fmt: skip
    by_label = {p.label: p for p in result.points}
    narrow, wide, free = (by_label[n] for n in ("A8 W8", "A8 W8 R16", "A8 W8 Rfloat"))
    assert narrow.integer
    assert not wide.integer
    assert not free.integer
    assert narrow.accuracy + 1 < wide.accuracy
    assert narrow.accuracy + 1 < free.accuracy
    assert result.all_integer == narrow
    assert sim.export(tmp_path, "net")
    expected = sim.model(x).detach()
    for found in Shipped(tmp_path / "net.onnx").run([x]):
        error = (torch.as_tensor(found[0]) - expected).abs().max()
        assert float(error) <= quantized(sim, "2").output_quantizers[0].get_scale().item()


def test_a_choice_depends_on_nothing_but_itself(sim: QuantizationSimModel, x: Tensor) -> None:
    groups, _ = searched(sim, x, [(8, 4), (16, 8), ("float", 8), "float", "float_residual"])
    trials = Trials(sim, groups, [x])
    choices = [tuple(i % len(g.options) for g in groups) for i in range(5)]
    first = [_with(trials, choice).model(x) for choice in choices]
    again = [_with(trials, choice).model(x) for choice in reversed(choices)]
    assert all(map(torch.equal, first, reversed(again)))


# --- interrupted ---------------------------------------------------------------------------------


class Judge:
    """An `evaluate` that counts its calls, and may be the end of its process."""

    def __init__(self, sim: QuantizationSimModel, x: Tensor, kill_at: int = -1) -> None:
        self.exact, self.x, self.calls, self.kill_at = sim.get_original_model()(x), x, 0, kill_at

    def __call__(self, model: Any) -> float:
        self.calls += 1
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return -float((torch.as_tensor(model(self.x)) - self.exact).abs().mean())


def searched_in(folder: str, kill_at: int = -1) -> tuple[str, int, Tensor]:
    sim, x = made()
    judge = Judge(sim, x, kill_at)
    result = choose_mixed_precision(
        sim, [(8, 4), (8, 8)], judge, [x], 0.01, results_dir=folder, latency=False
    )
    return result.to_json(), judge.calls, sim.model(x)


def test_a_search_that_was_killed_goes_on_with_the_same_result(tmp_path: Path) -> None:
    whole, calls, y = searched_in(str(tmp_path / "whole"))
    call = f"searched_in({str(tmp_path / 'cut')!r}, 13)"
    code = f"from tests.mixed_precision.test_choose import searched_in; {call}"
    killed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rest, calls_after, other = searched_in(str(tmp_path / "cut"))
    assert rest == whole
    assert (tmp_path / "cut" / "mixed_precision.json").read_text("utf-8") == whole
    assert torch.equal(other, y)
    assert calls - calls_after == 12  # what was found before was not looked for again


def test_progress_of_another_search_is_refused(
    sim: QuantizationSimModel, x: Tensor, tmp_path: Path
) -> None:
    args: dict[str, Any] = {"data": [x], "results_dir": tmp_path, "latency": False, "points": 1}
    choose_mixed_precision(sim, [(8, 4)], **args)
    with pytest.raises(ConfigError, match="belongs to another search: groups differ") as error:
        choose_mixed_precision(sim, [(8, 6)], **args)
    assert error.value.code == "FXQ268"
    assert choose_mixed_precision(sim, [(8, 6)], clean_start=True, **args).points
    next(tmp_path.glob("*.json")).write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="FXQ268"):
        choose_mixed_precision(sim, [(8, 6)], **args)


def test_progress_is_told(sim: QuantizationSimModel, x: Tensor) -> None:
    told: list[tuple[int, int]] = []
    result = choose_mixed_precision(
        sim, data=[x], latency=False, progress=lambda done, most: told.append((done, most))
    )
    assert [done for done, _ in told] == list(range(1, result.evaluations + 1))
    assert all(done <= most for done, most in told)


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"candidates": []}, "FXQ267"),
        ({"candidates": [8]}, "FXQ267"),
        ({"candidates": [(8, 4, 2)]}, "FXQ267"),
        ({"candidates": ["float_residual"]}, "FXQ267"),
        ({"candidates": [(8, 1)]}, "FXQ263"),
        ({"candidates": [((16, "float"), (8, "int"))]}, "FXQ263"),
        ({"data": None}, "FXQ286"),
        ({"cost": "money"}, "FXQ286"),
        ({"sensitivity": "evaluate"}, "FXQ286"),
        ({"allowed_accuracy_drop": -1}, "FXQ286"),
        ({"allowed_accuracy_drop": float("nan")}, "FXQ286"),
        ({"samples": 0}, "FXQ286"),
        ({"techniques": ["reconstruct"]}, "FXQ286"),
        ({"evaluate": lambda model: "good"}, "FXQ249"),
        ({"evaluate": lambda model: float("nan")}, "FXQ249"),
        ({"data": lambda model: None}, "FXQ286"),
        ({"data": iter([torch.zeros(2, 3, 8, 8)])}, "FXQ286"),
        ({"data": []}, "FXQ442"),
        ({"data": 3}, "FXQ443"),
        ({"data": [torch.full((2, 3, 8, 8), torch.nan)]}, "FXQ445"),
    ],
)
def test_mistakes_are_told(
    sim: QuantizationSimModel, x: Tensor, changes: dict[str, Any], code: str
) -> None:
    given: dict[str, Any] = {"candidates": [(8, 4)], "data": [x], "latency": False} | changes
    y = sim.model(x)
    with pytest.raises(FxQuantError) as error:
        choose_mixed_precision(sim, **given)
    assert error.value.code == code
    assert torch.equal(sim.model(x), y)


def test_what_the_target_lacks_is_refused() -> None:
    sim, x = made(target="amd_aie2")
    with pytest.raises(ConfigError, match="candidate A16 W8: activation=16 bits") as error:
        choose_mixed_precision(sim, data=[x])
    assert error.value.fix == "it offers 8 bits"
    with pytest.raises(ConfigError, match="the latency of amd_aie2 cannot be measured here"):
        choose_mixed_precision(sim, [(8, 8)], data=[x], cost="latency")


def test_a_simulation_without_ranges_or_choices_is_refused(x: Tensor) -> None:
    torch.manual_seed(0)
    bare = QuantizationSimModel(Net().eval(), x)
    with pytest.raises(FxQuantError, match="FXQ401"):
        choose_mixed_precision(bare, data=[x])
    bare.compute_encodings([x])
    for quantizer in bare.quantizers():
        quantizer.allow_overwrite(False)
    with pytest.raises(ConfigError, match="FXQ287"):
        choose_mixed_precision(bare, data=[x])


def test_candidates_are_read_as_others_write_them(sim: QuantizationSimModel) -> None:
    given = [((8, "int"), (4, "int")), (8, 4), ("int16", "int8"), ("float", 8), "float"]
    found = candidates_of([*given, "int16_residual"], sim.target)
    assert list(map(str, found)) == [
        "A8 W4", "A16 W8", "Afloat W8", "float", "A8 W4 R16",
    ]  # fmt: skip
