"""What modules in floating point would gain and cost, and that asking changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, choose_mixed_precision
from fxquant.analysis.debugging.layer_outputs import save_layer_outputs
from fxquant.analysis.debugging.what_if import State, WhatIf, what_if
from fxquant.errors import FxQuantError, SelectorError
from fxquant.inspection.node_errors import node_errors
from fxquant.ptq import reconstruct

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 5),
    ).eval()  # fmt: skip


def simulated() -> QuantizationSimModel:
    sim = QuantizationSimModel(net(), X[:1], "min_max", default_param_bw=4)
    sim.compute_encodings([X])
    return sim


def db(exact: Tensor, found: Tensor) -> float:
    noise = (exact - found).double().square().sum()
    return 10 * math.log10(float(exact.double().square().sum() / noise))


@torch.no_grad()
def test_gain_and_cost_are_those_of_a_simulation_without_the_layers() -> None:
    sim = simulated()
    before = sim.model(X)
    found = what_if(sim, X.split(8), ["2"])
    other = simulated()
    other.exclude_layers_from_quantization(["2"])
    exact = net()(X)
    assert found.now.sqnr_db == pytest.approx(db(exact, before), abs=1e-3)
    assert found.then.sqnr_db == pytest.approx(db(exact, other.model(X)), abs=1e-3)
    assert found.gain_db is not None
    assert found.gain_db > 0
    # multiply-accumulates of the three layers; 8-bit inputs, 4-bit weights, one of them in float
    macs = (8 * 36 * 27, 8 * 16 * 72, 128 * 5)
    assert found.now.bit_operations == sum(macs) * 8 * 4
    assert found.then.bit_operations == (macs[0] + macs[2]) * 8 * 4 + macs[1] * 8 * 32
    assert found.then.size - found.now.size == 8 * 72 * (32 - 4) / 8
    assert torch.equal(sim.model(X), before)
    assert str(found).startswith(f"2 in float: {found.gain_db:+.1f} dB, +")
    assert json.loads(found.to_json())["gain_db"] == found.gain_db


@torch.no_grad()
def test_rows_of_errors_name_modules_and_reconstructed_weights_go_back_to_float() -> None:
    sim = simulated()
    reconstruct(sim, X.split(8))
    rows = node_errors(sim, X.split(8)).rows
    found = what_if(sim, [X], [row for row in rows if row.local_db is not None])
    assert found.then.sqnr_db is None  # the float model itself
    assert "equal to the float model's" in str(found)


@torch.no_grad()
def test_latency_is_measured_and_the_simulation_stays_as_it_is() -> None:
    sim = simulated()
    before, state = sim.model(X), {k: v.clone() for k, v in sim.model.state_dict().items()}
    found = what_if(sim, [X], "*", latency=True, rounds=2)
    assert found.now.latency is not None
    assert found.then.latency is not None
    assert found.now.latency > 0 < found.then.latency
    assert torch.equal(sim.model(X), before)
    after = sim.model.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(state[k], after[k]) for k in state)


def test_nothing_gained_has_no_minus() -> None:
    found = WhatIf(("a",), State(10.0, 100.0, 1000.0), State(9.99, 100.0, 999.0), 8)
    assert str(found) == "a in float: +0.0 dB, +0% bit operations, +0% bytes of weights"


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(SelectorError, match="FXQ213"):
        what_if(simulated(), [X], ["nowhere"])


@pytest.mark.parametrize("batch", [None, torch.ones(2, 3)])
def test_a_batch_that_the_model_does_not_take_is_named_everywhere(
    batch: Any, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    data = [torch.randn(4, 8)]
    sim = QuantizationSimModel(model, data[0])
    sim.compute_encodings(data)
    bad = [*data, batch]
    for look in (
        lambda: what_if(sim, bad, ["0"]),
        lambda: choose_mixed_precision(sim, data=bad),
        lambda: save_layer_outputs(sim, bad, tmp_path),
    ):
        with pytest.raises(FxQuantError, match="does not take batch 1") as caught:
            look()
        assert caught.value.code == "FXQ441"
        assert "nothing" not in str(caught.value.fix)
