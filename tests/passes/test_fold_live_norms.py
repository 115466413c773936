"""Layers get the weights that they computed with their live batch norms."""

from __future__ import annotations

import torch
from torch import nn

from fxquant import QuantizationSimModel
from fxquant.nn.live_norm import live_norm_of
from fxquant.passes import FoldLiveNorms
from tests.helpers.golden import assert_rewrites
from tests.helpers.modules import quantized

X = torch.randn(4, 3, 6, 6)


def simulated(net: nn.Module) -> QuantizationSimModel:
    sim = QuantizationSimModel(net.eval(), X, "min_max", config={"fold_batch_norms": "live"})
    sim.compute_encodings([X])
    return sim


def test_the_pass_leaves_a_plain_layer() -> None:
    sim = simulated(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    assert live_norm_of(quantized(sim, "0")) is not None
    assert_rewrites(
        FoldLiveNorms(),
        sim.model,
        """
        %input_1      = input
        %input_1_stub = QuantizedQuantStub[input_1_stub](%input_1)
        %_0           = quantized_conv2d[0](%input_1_stub)
        %_2           = quantized_relu[2](%_0)
        return %_2
    """,
    )
    assert live_norm_of(quantized(sim, "0")) is None


def test_weights_that_train_go_on_training_and_bits_stay() -> None:
    sim = simulated(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)))
    want = sim.model(X)
    outcome = FoldLiveNorms()(sim.model)
    assert outcome.changes
    assert torch.equal(sim.model(X), want)
    module = quantized(sim, "0")
    assert module.get_parameter("weight").requires_grad
    assert not FoldLiveNorms()(sim.model).changes
