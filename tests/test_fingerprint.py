"""Fingerprints tell which weights were edited, and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from fxquant import QuantizationSimModel
from fxquant.fingerprint import changed, fingerprints


def test_edited_weights_are_named() -> None:
    x = torch.randn(8, 4)
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval(), x, "min_max")
    before = fingerprints(sim.model)
    assert set(before) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    sim.compute_encodings([x])
    assert changed(sim.model, before) == [], "ranges are no weights"
    with torch.no_grad():
        sim.model.get_submodule("1").get_parameter("weight")[0, 0] += 1e-3
    assert changed(sim.model, before) == ["1.weight"]
    sim.model.get_submodule("0").bfloat16()
    assert changed(sim.model, before) == ["0.weight", "0.bias", "1.weight"]
