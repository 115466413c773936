"""Random networks from end to end: prepare, simulate, calibrate, export with proof, integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fxquant.graph.pytree import tensors
from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.lowering.lower import lower
from fxquant.sim import QuantizationSimModel
from tests.helpers.integers import assert_equal, compare
from tests.random_networks import Case, network

SCHEMES = ("min_max", "tf_enhanced", "percentile")
OPSETS = (21, 13, 17, 19, 23)
CONFIGS: tuple[dict[str, object] | None, ...] = (
    None, None, {"per_channel": False}, None, {"activation_symmetric": True},
    {"activation_bitwidth": 16}, {"weight_bitwidth": 4},
)  # fmt: skip
FAST, FULL = range(60), range(60, 1100)


def _simulated(case: Case, seed: int) -> QuantizationSimModel:
    config = CONFIGS[seed % 7]
    sim = QuantizationSimModel(case.model, case.inputs(3), SCHEMES[seed % 3], config=config)
    sim.compute_encodings([case.inputs(4), case.inputs(5)])
    return sim


def check(seed: int, folder: Path) -> None:
    """No unexplained difference anywhere on the way, at batch sizes the graph has not seen."""
    case = network(seed)
    sim = _simulated(case, seed)
    # the proof runs both optimization levels, each node on the simulation's own integers
    # 16 bits have types from opset 21 on
    opset = 21 if CONFIGS[seed % 7] == {"activation_bitwidth": 16} else OPSETS[seed % 5]
    report = sim.export(folder, "model", dummy_input=case.inputs(4), opset=opset)
    assert report.proven
    assert report.max_steps <= 1
    path = folder / "model.onnx"
    names = IntegerModel(path).input_names
    feeds = {n: x.numpy() for n, x in zip(names, case.inputs(6), strict=True)}
    assert_equal(path, feeds)


@pytest.mark.parametrize("seed", FAST)
def test_a_random_network_is_proven_and_its_integers_are_exact(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.parametrize("seed", FAST[::6])
def test_nothing_of_onnxruntime_is_needed_for_that(seed: int) -> None:
    case = network(seed)
    lowered = lower(_simulated(case, seed).model, (case.inputs(4), {}))
    feeds = {n: x.numpy() for n, x in zip(lowered.input_names, case.inputs(6), strict=True)}
    # sums of float convolutions are torch's: a 16-bit grid shows last bits 257 times as often
    wide = CONFIGS[seed % 7] == {"activation_bitwidth": 16}
    assert compare(lowered.model, feeds, islands="own").share >= (0.999 if wide else 0.9999)


@pytest.mark.full
@pytest.mark.parametrize("seed", FULL)
def test_more_random_networks(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.parametrize("seed", [0, 1, 2, 5, 11])
def test_the_integer_model_returns_what_the_simulation_returns(seed: int) -> None:
    case = network(seed)
    sim = _simulated(case, seed)
    x = case.inputs(6)
    with torch.no_grad():
        ours, theirs = sim.integer_model()(*x), sim.model(*x)
    assert type(ours) is type(theirs)
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        # float outputs have no step; they are sums of the same integers, in another order
        bound = 8 * np.finfo(np.float32).eps * np.abs(b.numpy()).max()
        assert np.abs((a - b).numpy()).max() <= bound


def test_networks_are_the_same_for_a_seed() -> None:
    first, second = network(7), network(7)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
