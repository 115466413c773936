"""Fingerprints tell which weights were edited, and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from fxquant import QuantizationSimModel
from fxquant.fingerprint import CALIBRATED, changed_since, fingerprints, mark_calibrated


def test_edited_weights_are_named() -> None:
    x = torch.randn(8, 4)
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval(), x, "min_max")
    assert changed_since(sim.model, None) == []
    assert set(fingerprints(sim.model)) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    sim.compute_encodings([x])
    before = sim.model.meta[CALIBRATED]
    assert changed_since(sim.model, before) == []
    with torch.no_grad():
        sim.model.get_submodule("1").get_parameter("weight")[0, 0] += 1e-3
    assert changed_since(sim.model, before) == ["1.weight"]
    with torch.no_grad():
        sim.model.get_submodule("0").get_parameter("bias").data.mul_(2)
    assert changed_since(sim.model, before) == ["0.bias", "1.weight"]
    mark_calibrated(sim.model)
    assert changed_since(sim.model, sim.model.meta[CALIBRATED]) == []


def test_training_that_moves_ranges_too_leaves_nothing_stale() -> None:
    x = torch.randn(8, 4)
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), x, "min_max")
    sim.compute_encodings([x])
    optimizer = torch.optim.SGD(sim.model.parameters(), lr=0.1)
    sim.model(x).square().sum().backward()
    optimizer.step()
    before = sim.model.meta[CALIBRATED]
    assert fingerprints(sim.model) != before[0]
    assert changed_since(sim.model, before) == []
