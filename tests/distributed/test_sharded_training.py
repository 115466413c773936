"""Training on parameters that are sharded over ranks is that of DistributedDataParallel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fxquant import QuantizationSimModel, distributed, qat
from fxquant.errors import CheckpointError
from tests.distributed.test_training_over_ranks import batch, simulation, trained
from tests.helpers.ranks import results_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked")


def calibrated(name: str, rank: int, size: int) -> QuantizationSimModel:
    sim = simulation(name)
    distributed.compute_encodings(sim, [batch(0, rank, size)[0]])
    return sim


def state_of(sim: QuantizationSimModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in sim.model.eval().state_dict().items()}


def refusal(sim: QuantizationSimModel, path: Path) -> str:
    try:
        qat.save_training(path, sim, torch.optim.SGD(sim.model.parameters(), 0.1))
    except CheckpointError as error:
        return error.code
    return ""


def work(rank: int, size: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("regular", "learning"):
        plain = calibrated(name, rank, size)
        trained(plain, DistributedDataParallel(plain.model), rank, size)
        sim, whole = calibrated(name, rank, size), simulation(name)
        layers = [m for m in sim.model.children() if "weight" in m._parameters]
        distributed.fully_shard(sim.model, layers)
        sharded = sum(p.numel() - p.to_local().numel() for p in sim.model.parameters()
                      if hasattr(p, "to_local"))  # fmt: skip
        trained(sim, sim.model, rank, size)
        distributed.gather(sim.model.eval(), whole.model)
        found[name] = state_of(plain), state_of(whole), sharded
    sim = calibrated("regular", rank, size)
    own = [refusal(sim, folder / f"state-{rank}") for _ in range(2)]
    found["refusals"] = own, refusal(sim, folder / "state")
    return found


def test_sharded_training(tmp_path: Path) -> None:
    results = results_of("tests.distributed.test_sharded_training:work", 2, tmp_path)
    for found in results:
        for name in ("regular", "learning"):
            want, got, sharded = found[name]
            assert sharded > 100
            assert want.keys() == got.keys()
            for key, value in want.items():
                # sums of two numbers are the same in any order
                assert torch.equal(value, got[key]), key
    # a rank saves again where it saved; of two at one path one is refused
    assert [found["refusals"][0] for found in results] == [["", ""], ["", ""]]
    assert sorted(found["refusals"][1] for found in results) == ["", "FXQ618"]
