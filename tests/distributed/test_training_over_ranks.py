"""Training by DistributedDataParallel: all ranks end with the same parameters, ranges and norms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fxquant import QuantizationSimModel, distributed, qat
from tests.helpers.ranks import results_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked")

LEARNING = "training_range_learning_with_tf_init"
CASES = {
    "regular": ("min_max", None),
    "learning": (LEARNING, None),
    "regular_live": ("min_max", {"fold_batch_norms": "live"}),
    "learning_live": (LEARNING, {"fold_batch_norms": "live"}),
}
STEPS = 3


def batch(step: int, rank: int, size: int) -> tuple[Tensor, Tensor]:
    """The part of a rank of a batch of eight."""
    g = torch.Generator().manual_seed(step)
    x, y = torch.randn(8, 3, 6, 6, generator=g), torch.randint(0, 4, (8,), generator=g)
    return x[rank::size], y[rank::size]


def simulation(name: str) -> QuantizationSimModel:
    torch.manual_seed(0)
    scheme, config = CASES[name]
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    )
    return QuantizationSimModel(net.eval(), batch(0, 0, 1)[0], scheme, 8, 4, config=config)


def trained(sim: QuantizationSimModel, model: nn.Module, rank: int, size: int) -> None:
    optimizer = torch.optim.SGD(qat.parameter_groups(sim.model, 0.05, 0.01), momentum=0.9)
    model.train()
    for step in range(STEPS):
        x, y = batch(step, rank, size)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def work(rank: int, size: int, _: Path) -> dict[str, dict[str, Tensor]]:
    """Train every case; what the ranks end with."""
    found = {}
    for name in CASES:
        sim = simulation(name)
        distributed.compute_encodings(sim, [batch(0, rank, size)[0]])
        # ranges that an optimizer does not move get no gradient, and all others one in every step
        trained(sim, DistributedDataParallel(sim.model), rank, size)
        distributed.average_batch_norms(sim.model)
        sim.model.eval()
        found[name] = {k: v.clone() for k, v in sim.model.state_dict().items()}
        found[name]["outputs"] = sim.model(batch(9, 0, 1)[0]).detach().as_subclass(Tensor)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What two ranks end with."""
    folder = tmp_path_factory.mktemp("two")
    return results_of("tests.distributed.test_training_over_ranks:work", 2, folder)


def _is_same(results: list[Any], name: str) -> None:
    first, *others = (result[name] for result in results)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_end_with_the_same(found: list[Any], name: str) -> None:
    _is_same(found, name)
    state = found[0][name]
    before = simulation(name)
    before.compute_encodings([batch(0, 0, 1)[0]])
    moved = {k for k, v in before.model.state_dict().items() if not torch.equal(v, state[k])}
    weights = {k for k in moved if k.endswith("weight")}
    assert len(weights) >= 2, "training has trained"
    activation = "2.output_quantizers.0.max"
    assert (activation in moved) == name.startswith("learning")
    assert "4.param_quantizers.weight.max" in moved, "it follows, or is learned"
    assert any("running_mean" in k for k in moved) == name.endswith("live")


@pytest.mark.parametrize("name", ["regular", "learning"])
def test_ranks_train_as_one_process_does(found: list[Any], name: str) -> None:
    """The mean of the gradients of parts is that of the whole batch, up to the order of sums.

    Gradients of ranges are scaled by the elements of an activation, without the batch.
    """
    sim = simulation(name)
    sim.compute_encodings([batch(0, r, 2)[0] for r in range(2)])
    trained(sim, sim.model, 0, 1)
    for key, value in sim.model.state_dict().items():
        # one value that falls into another step of a grid of 8 bits changes gradients by 1 %
        limit = 0.02 * float(value.abs().max())
        assert float((value - found[0][name][key]).abs().max()) <= limit, key


@pytest.mark.full
def test_four_ranks_end_with_the_same(tmp_path: Path) -> None:
    results = results_of("tests.distributed.test_training_over_ranks:work", 4, tmp_path)
    for name in CASES:
        _is_same(results, name)
