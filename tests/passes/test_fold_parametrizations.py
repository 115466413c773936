"""Parametrized weights become parameters, and nothing else changes."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from fxquant import QuantizationSimModel, prepare_model
from fxquant.passes import FoldParametrizations


def _net(kind: str) -> nn.Module:
    conv = nn.Conv2d(3, 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        wraps: dict[str, Callable[[nn.Module], nn.Module]] = {
            "weight_norm": parametrizations.weight_norm,
            "spectral_norm": parametrizations.spectral_norm,
            "old_weight_norm": nn.utils.weight_norm,
            "old_spectral_norm": nn.utils.spectral_norm,
            "pruning": lambda module: prune.l1_unstructured(module, "weight", 0.5),
            "pruning_twice": lambda module: prune.ln_structured(
                prune.random_unstructured(module, "weight", 0.3), "weight", 1, 2, 0
            ),
        }
        made = wraps[kind](conv)
    return nn.Sequential(made, nn.ReLU()).eval()


@pytest.mark.parametrize(
    "kind",
    [
        "weight_norm",
        "spectral_norm",
        "old_weight_norm",
        "old_spectral_norm",
        "pruning",
        "pruning_twice",
    ],
)
def test_computed_weights_become_parameters(kind: str) -> None:
    net, x = _net(kind), torch.randn(2, 3, 6, 6)
    gm = prepare_model(net, x)
    before = gm(x)
    FoldParametrizations()(gm)
    conv = gm.get_submodule("0")
    assert type(conv) is nn.Conv2d
    assert isinstance(conv.weight, nn.Parameter)
    assert not parametrize.is_parametrized(conv)
    assert not conv._forward_pre_hooks
    torch.testing.assert_close(gm(x), before)


@pytest.mark.parametrize("kind", ["weight_norm", "pruning"])
def test_they_are_quantized_and_the_prepared_model_keeps_them(kind: str) -> None:
    net, x = _net(kind), torch.randn(2, 3, 6, 6)
    gm = prepare_model(net, x)
    sim = QuantizationSimModel(gm, x, "tf")
    sim.compute_encodings([x])
    assert sim.model.get_submodule("0").param_quantizers["weight"].is_initialized()  # type: ignore[index, union-attr]
    assert list(gm.state_dict()) == list(net.state_dict())
    assert torch.equal(gm(x), net(x))
