"""Rates of ranges by path, and ranges that stay from a step on."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.errors import TrainingError
from fxquant.qat import RangeRule, RangeSchedule, parameter_groups
from tests.helpers.modules import quantized

LEARNED = "training_range_learning_with_tf_init"
X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


def simulated(scheme: str = LEARNED) -> QuantizationSimModel:
    torch.manual_seed(0)
    sim = QuantizationSimModel(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), X, scheme, 4, 4
    )
    sim.compute_encodings([X])
    return sim


def ranges(sim: QuantizationSimModel) -> dict[str, Tensor]:
    """The upper end of every range by the path of its quantizer."""
    named = sim.model.named_parameters()
    return {n.removesuffix(".max"): p.detach().clone() for n, p in named if n.endswith(".max")}


def steps(sim: QuantizationSimModel, schedule: RangeSchedule, count: int, lr: float = 0.0) -> None:
    optimizer = torch.optim.Adam(schedule.parameter_groups(lr, 1e-2))
    for _ in range(count):
        optimizer.zero_grad(set_to_none=False)
        sim.model(X).square().sum().backward()
        optimizer.step()
        schedule.step()


def test_factors_are_those_of_the_learning_rate() -> None:
    found = {}
    for factor in (1.0, 0.25, 0.0):
        sim = simulated()
        before = ranges(sim)
        schedule = RangeSchedule(sim.model, {"0.*": RangeRule(0.5), "0.param*": RangeRule(factor)})
        steps(sim, schedule, 1)
        found[factor] = {k: (v - before[k]).abs().max().item() for k, v in ranges(sim).items()}
    weight = "0.param_quantizers.weight"
    assert found[1.0][weight] > 0
    # Adam's first step is its learning rate; a float32 difference of numbers of the range's size
    assert found[0.25][weight] == pytest.approx(found[1.0][weight] / 4, rel=1e-2)
    assert found[0.0][weight] == 0.0
    others = [k for k in found[1.0] if k != weight]
    assert others
    assert all(found[1.0][k] == found[0.0][k] for k in others)


def test_groups_hold_every_range_once() -> None:
    sim = simulated()
    rules = {"*": RangeRule(0.5), "*.output_quantizers.*": RangeRule(0.1)}
    groups = RangeSchedule(sim.model, rules).parameter_groups(1e-3)
    plain = parameter_groups(sim.model, 1e-3)
    ids = [id(p) for g in groups for p in g["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for g in plain for p in g["params"]}
    assert groups[0] == plain[0]
    assert all("0.5 times" in g["name"] or "0.1 times" in g["name"] for g in groups[1:])


def test_ranges_stay_from_their_step_on_whatever_momentum_the_optimizer_has() -> None:
    sim = simulated()
    rules = {"*.param_quantizers.*": RangeRule(freeze_at=3), "2.*": RangeRule(freeze_at=5)}
    schedule = RangeSchedule(sim.model, rules)
    optimizer = torch.optim.Adam(schedule.parameter_groups(0.0, 1e-2))
    seen, frozen = [ranges(sim)], [schedule.frozen()]
    for _ in range(8):
        optimizer.zero_grad(set_to_none=False)
        sim.model(X).square().sum().backward()
        optimizer.step()
        schedule.step()
        seen.append(ranges(sim))
        frozen.append(schedule.frozen())
    first, last = "0.param_quantizers.weight", "2.param_quantizers.weight"
    moves = {key: [not torch.equal(a[key], b[key]) for a, b in pairwise(seen)] for key in seen[0]}
    assert moves[first] == [True] * 3 + [False] * 5
    assert moves[last] == [True] * 5 + [False] * 3
    assert any(all(moved) for moved in moves.values())
    assert first not in frozen[2]
    assert first in frozen[3]
    assert last in frozen[5]


def test_layers_are_frozen_one_after_the_other() -> None:
    sim = simulated("min_max")  # following a weight that stays moves nothing, either
    schedule = RangeSchedule(sim.model, {"0.*": RangeRule(freeze_at=2, weights=True)})
    first, last = (quantized(sim, p).get_parameter("weight") for p in ("0", "2"))
    steps(sim, schedule, 2, lr=1e-2)
    assert not first.requires_grad
    assert last.requires_grad
    kept, moved = first.detach().clone(), last.detach().clone()
    steps(sim, schedule, 2, lr=1e-2)
    assert torch.equal(first, kept)
    assert not torch.equal(last, moved)


def test_a_schedule_goes_on_from_a_state() -> None:
    sim = simulated()
    schedule = RangeSchedule(sim.model, {"*": RangeRule(freeze_at=4)})
    steps(sim, schedule, 4)
    other = simulated()
    resumed = RangeSchedule(other.model, {"*": RangeRule(freeze_at=4)})
    assert any(p.requires_grad for q in other.quantizers() for p in q.parameters())
    resumed.load_state_dict(schedule.state_dict())
    assert resumed.frozen() == schedule.frozen() != []
    assert not any(p.requires_grad for q in other.quantizers() for p in q.parameters())


def test_wrong_rules() -> None:
    sim = simulated()
    with pytest.raises(TrainingError, match=r"FXQ832(.|\n)*did you mean '0.param_quantizers"):
        RangeSchedule(sim.model, {"0.param_quantizer.weight": RangeRule()})
    with pytest.raises(TrainingError, match="FXQ832"):
        RangeSchedule(sim.model, {"*": 0.5})  # type: ignore[dict-item]
    for wrong in (-1.0, math.nan, math.inf, "1", True):
        with pytest.raises(TrainingError, match="FXQ832"):
            RangeRule(factor=wrong)  # type: ignore[arg-type]
    for steps_ in (-1, 1.5, True):
        with pytest.raises(TrainingError, match="FXQ832"):
            RangeRule(freeze_at=steps_)  # type: ignore[arg-type]
