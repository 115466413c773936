"""Float values of changed parameters: kept, copied, and given up when something else writes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from fxquant.checkpoint import load_checkpoint, save_checkpoint
from fxquant.nn import quantized_class
from fxquant.ptq import reconstruct, restore, snapshot
from fxquant.ptq.walking.originals import changing, float_module, float_value
from fxquant.ptq.walking.walk import FloatEnvironment, Walk
from tests.helpers.techniques import images, normed, outputs, simulation

if TYPE_CHECKING:
    from pathlib import Path

    from fxquant import QuantizationSimModel

DATA = images()


def float_outputs(sim: QuantizationSimModel) -> torch.Tensor:
    """What the walk takes for the float model's outputs."""
    gm = sim.model
    exact = FloatEnvironment(gm, "float")
    with torch.no_grad():
        walk = Walk(gm, DATA, (exact,))
        for node in walk.nodes():
            if node.op == "output":
                walk.compute(node, exact)
                return torch.cat([walk.value(node, exact, b) for b in range(len(walk))])
    msg = "there is no output"
    raise AssertionError(msg)


def test_the_float_model_stays_the_float_model_whatever_techniques_change() -> None:
    net = normed()
    sim = simulation(net, DATA, 3)
    want = float_outputs(sim)
    torch.testing.assert_close(want, outputs(net, DATA))  # batch norms are folded
    taken = snapshot(sim)
    for _ in range(2):
        reconstruct(sim, DATA)
        assert torch.equal(float_outputs(sim), want)
        assert torch.equal(float_outputs(copy.deepcopy(sim)), want)
    middle = snapshot(sim)
    with torch.no_grad(), changing(sim.model.get_submodule("head"), "weight"):
        sim.model.get_parameter("head.weight").add_(1)
    restore(sim, middle)  # what was written after it is no other technique's
    assert torch.equal(float_outputs(sim), want)
    restore(sim, taken)
    assert torch.equal(float_outputs(sim), want)
    assert torch.equal(outputs(sim.get_original_model(), DATA), want)


def test_a_checkpoint_holds_what_is_computed_with(tmp_path: Path) -> None:
    net = normed()
    sim, other = (simulation(net, DATA, 3) for _ in range(2))
    reconstruct(sim, DATA)
    save_checkpoint(sim, tmp_path / "c")
    load_checkpoint(other, tmp_path / "c")
    assert torch.equal(outputs(other.model, DATA), outputs(sim.model, DATA))


def test_what_else_writes_makes_a_new_float_value() -> None:
    layer: Any = quantized_class(torch.nn.Linear)(3, 2)
    with torch.no_grad():
        before = layer.weight.clone()
        for number in (1.0, 2.0):
            with changing(layer, "weight", "bias"):
                layer.weight.fill_(number)
            assert torch.equal(float_value(layer, "weight"), before)
        assert torch.equal(float_module(layer).get_parameter("weight"), before)
        assert torch.equal(layer.weight, torch.full((2, 3), 2.0))
        layer.weight.fill_(3.0)  # an optimizer, or the user
        assert torch.equal(float_value(layer, "weight"), layer.weight)
        assert torch.equal(float_module(layer).get_parameter("weight"), layer.weight)
    assert "_float_values" not in vars(layer.get_original_module())
