"""Layers get the weights that they computed with their live batch norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, fold_all_batch_norms_to_scale
from fxquant.nn.live_norm import live_norm_of
from fxquant.passes import FoldLiveNorms
from fxquant.quantization.tensor import plain
from tests.helpers.golden import assert_rewrites
from tests.helpers.modules import quantized
from tests.passes.test_fold_batch_norms import settled

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


def test_a_product_with_a_parameter_has_one_too() -> None:
    """Folded for good or into the steps, the parameter of the network is what is computed with."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x @ self.weight + self.bias)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net, x = settled(Net()), torch.randn(32, 6)
    for mode in ("live", False):
        sim = QuantizationSimModel(net, x, "min_max", config={"fold_batch_norms": mode})
        sim.compute_encodings([x])
        want = plain(sim.model(x)).detach()
        if mode:
            assert FoldLiveNorms()(sim.model).modified
            assert torch.equal(plain(sim.model(x)), want)
        else:
            assert fold_all_batch_norms_to_scale(sim).paths == (("matmul", "norm"),)
        model: Any = sim.model
        assert model.weight is model.matmul.weight
        assert model.bias is model.matmul.bias
        exact = net(x).detach()
        error = (plain(model(x)) - exact).square().mean() / exact.square().mean()
        assert error < 1e-4  # eight bits
