"""What calibration observes: activations as they will be when weights are what they can be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxquant import QuantizationSimModel
from fxquant.nn.modes import quantization_off
from fxquant.quantization.tensor import plain


@pytest.mark.parametrize(("bits", "rounded"), [(2, False), (3, True), (8, True)])
def test_weights_of_two_bits_do_not_decide_on_ranges(bits: int, *, rounded: bool) -> None:
    """They are reconstructed or trained later, and the outputs are near to the float ones then."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    x = torch.randn(64, 16, generator=generator)
    sim = QuantizationSimModel(net, x, "min_max", default_param_bw=bits)
    sim.compute_encodings([x])
    quantizer: Any = sim.model.get_submodule("1.output_quantizers.0")
    observed = QuantizationSimModel(net, x, "min_max", default_param_bw=bits)
    observed.compute_encodings([x])
    first = observed.model.get_submodule("0")
    inputs = observed.model.get_submodule("input_1_stub")
    with torch.no_grad(), quantization_off(inputs):
        if rounded:
            values = first(x).relu()
        else:
            with quantization_off(first):
                values = first(x).relu()
    step = float(quantizer.get_scale())
    assert float(quantizer.get_max()) == pytest.approx(float(plain(values).max()), abs=step / 2)
    of_weight: Any = sim.model.get_submodule("0.param_quantizers.weight")
    assert of_weight.enabled
