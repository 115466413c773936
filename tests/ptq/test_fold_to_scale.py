"""Batch norms of a simulation go into steps; the integers stay what training made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, fold_all_batch_norms_to_scale
from tests.passes.test_fold_batch_norms import Fork, settled

CASES = [
    (nn.Linear(4, 6), nn.BatchNorm1d, (8, 4)),
    (nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d, (4, 4, 8)),
    (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d, (4, 4, 8, 8)),
    (nn.Conv2d(6, 6, 3, groups=6, padding=1), nn.BatchNorm2d, (4, 6, 8, 8)),
    (nn.Conv3d(4, 6, 2), nn.BatchNorm3d, (2, 4, 4, 4, 4)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d, (2, 4, 5, 5)),
]


def simulated(net: nn.Module, x: Tensor, **config: Any) -> QuantizationSimModel:
    sim = QuantizationSimModel(
        net, x, "min_max", config={"fold_batch_norms": False, "per_channel": True, **config}
    )
    sim.compute_encodings([x])
    return sim


def integers(module: Any) -> Tensor:
    quantizer = module.param_quantizers["weight"]
    found = torch.round(module.weight / quantizer.get_scale())
    return torch.as_tensor(found.clamp(quantizer.qmin, quantizer.qmax))


@pytest.mark.parametrize(("layer", "norm", "shape"), CASES, ids=lambda v: type(v).__name__)
def test_the_integers_stay_and_so_does_what_is_computed(
    layer: nn.Module, norm: type[nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    net, x = settled(nn.Sequential(layer, norm(6), nn.ReLU())), torch.randn(shape)
    net.get_parameter("1.weight").data.abs_()
    sim = simulated(net, x, quantize_activations=False, quantize_bias=False)
    model: Any = sim.model
    with torch.no_grad():
        want = model(x)
    before = integers(model.get_submodule("0"))
    found = fold_all_batch_norms_to_scale(sim)
    assert found.paths == (("0", "1"),)
    assert not found.left
    after = integers(model.get_submodule("0"))
    assert torch.equal(before, after)
    with torch.no_grad():
        assert float((model(x) - want).abs().max() / want.abs().max()) < 1e-5


def test_a_negative_factor_turns_signs_round_and_one_integer_has_no_opposite() -> None:
    torch.manual_seed(0)
    net, x = settled(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))), torch.randn(2, 4, 8, 8)
    net.get_parameter("1.weight").data.abs_().neg_()
    sim = simulated(net, x)
    before = integers(sim.model.get_submodule("0"))
    assert bool((before == -128).any())
    fold_all_batch_norms_to_scale(sim)
    assert torch.equal(integers(sim.model.get_submodule("0")), (-before).clamp(max=127))


def test_asymmetric_weights_are_mirrored_to_the_integer() -> None:
    torch.manual_seed(0)
    net, x = settled(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))), torch.randn(2, 4, 8, 8)
    sim = simulated(net, x, weight_symmetric=False, quantize_activations=False)
    with torch.no_grad():
        want = sim.model(x)
        fold_all_batch_norms_to_scale(sim)
        got = sim.model(x)
    layer: Any = sim.model.get_submodule("0")
    step = layer.param_quantizers["weight"].get_scale().max().item()
    # zero points are rounded, half of an integer to even: mirrored, to the other one
    assert float((got - want).abs().max()) < step * float(x.abs().max()) * 36


def test_the_grids_are_those_of_a_simulation_that_was_folded_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = settled(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4),
        )
    )  # fmt: skip
    x = torch.randn(4, 3, 9, 9)
    sim, other = simulated(net, x), QuantizationSimModel(net, x, "min_max")
    other.compute_encodings([x])
    assert len(fold_all_batch_norms_to_scale(sim)) == 2
    model, wanted = sim.model, other.model
    for path in ("0", "3"):
        ours: Any = model.get_submodule(path)
        theirs: Any = wanted.get_submodule(path)
        torch.testing.assert_close(
            ours.param_quantizers["weight"].get_scale(),
            theirs.param_quantizers["weight"].get_scale(),
        )
        bias = ours.param_quantizers["bias"]
        assert type(bias) is type(theirs.param_quantizers["bias"])
        torch.testing.assert_close(bias.get_scale(), theirs.param_quantizers["bias"].get_scale())
    with torch.no_grad():
        got, want = model(x), wanted(x)
    assert float((got - want).abs().max() / want.abs().max()) < 0.02
    assert sim.export(tmp_path, "net")


@pytest.mark.parametrize(
    ("net", "config", "reason"),
    [
        (
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
            {"per_channel": False},
            "share a range",
        ),
        (
            nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6)),
            {},
            "share a range",
        ),
        (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)), {}, "no layer computes"),
        (Fork(), {}, "also read by add"),
    ],
    ids=["per tensor", "groups", "behind", "fork"],
)  # fmt: skip
def test_what_cannot_be_folded_is_told(net: nn.Module, config: dict[str, Any], reason: str) -> None:
    x = torch.randn(2, 4, 6, 6)
    sim = simulated(settled(net), x, **config)
    with torch.no_grad():
        want = sim.model(x)
    found = fold_all_batch_norms_to_scale(sim)
    assert not found
    assert any(reason in text for text in found.left.values()), found.left
    with torch.no_grad():
        assert torch.equal(torch.as_tensor(sim.model(x)), torch.as_tensor(want))


def test_a_simulation_that_is_not_calibrated_is_left_alone() -> None:
    net = settled(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    sim = QuantizationSimModel(net, torch.randn(2, 4, 6, 6), config={"fold_batch_norms": False})
    found = fold_all_batch_norms_to_scale(sim)
    assert "its weight is not calibrated" in str(found)
