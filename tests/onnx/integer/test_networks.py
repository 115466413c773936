"""Whole networks: every quantized tensor of the executor against onnxruntime's default run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import integer_parity
from fxquant.models import digits
from fxquant.onnx.lowering.lower import lower
from fxquant.sim import QuantizationSimModel
from tests.helpers.integers import Comparison, compare
from tests.random_networks import randomize

Inputs = tuple[Tensor, ...]


def compared(
    model: nn.Module, given: Callable[[int], Inputs], *, islands: str = "own", opset: int = 21,
    **options: Any,
) -> Comparison:  # fmt: skip
    """A calibrated network, floating-point islands and all, at a batch it has not seen."""
    randomize(model, 0)
    sim = QuantizationSimModel(model.eval(), given(0), "min_max", **options)
    sim.compute_encodings([given(0), given(1)])
    lowered = lower(sim.model, (given(0), {}), opset=opset)
    feeds = {n: x.numpy() for n, x in zip(lowered.input_names, given(2), strict=True)}
    return compare(lowered.model, feeds, islands=islands)


def images(seed: int) -> Inputs:
    """Smooth random images of 32 pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(4, 3, 8, 8, generator=generator)
    return (nn.functional.interpolate(coarse, size=32, mode="bilinear"),)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = getattr(digits, name)()
    return network


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "mobilenet_v3", "squeezenet", "unet", "convnext"]
)
def test_convolutional_networks_are_equal_bit_for_bit(name: str) -> None:
    found = compared(build(name), images)
    assert found.elements > 100_000
    assert found.equal == found.elements
    assert found.outputs == 0.0


OTHERWISE: dict[str, dict[str, Any]] = {
    "per_tensor": {"config": "per_tensor"},
    "integer_outputs": {"config": "integer_outputs"},
    "reduce_range": {"config": "reduce_range"},
    "asymmetric_weights": {"config": {"weight_symmetric": False}},
    "4_bit_activations": {"config": {"activation_bitwidth": 4}},
    "powers_of_two": {"target": "generic_pof2"},
    "signed": {"target": "onnxruntime_arm"},
    "opset_13": {"opset": 13},
    "opset_23": {"opset": 23},
}


@pytest.mark.parametrize("name", sorted(OTHERWISE))
@pytest.mark.parametrize("network", ["mobilenet_v3", "vit"])
def test_other_configurations_and_targets(network: str, name: str) -> None:
    # float operators that have no formula here (convolutions, norms of opset 13) are the runtime's
    found = compared(build(network), images, islands="onnxruntime", **OTHERWISE[name])
    assert found.equal == found.elements
    assert found.outputs == 0.0


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_vision_transformers_are_equal_bit_for_bit(name: str) -> None:
    found = compared(build(name), images)
    assert found.equal == found.elements
    assert found.outputs == 0.0


def test_an_encoder_of_text() -> None:
    data = [inputs for inputs, _ in zip(digits.tokens(), range(3), strict=False)]
    found = compared(build("bert"), lambda seed: tuple(x[:16] for x in data[seed]))
    assert found.equal == found.elements
    assert found.outputs == 0.0


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(integer_parity.NETWORKS))
def test_networks_of_full_size(name: str) -> None:
    found = compared(
        integer_parity.build(name), lambda seed: integer_parity.inputs(name, 1, seed, 224)
    )
    assert found.equal == found.elements
