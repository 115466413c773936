"""Calibration of a whole model: activations observe, parameters follow from themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxquant.nn as qnn
import fxquant.quantization as Q
from fxquant.errors import CalibrationError
from fxquant.nn import QuantizationMixin


def activation() -> Q.affine.QuantizeDequantize:
    return Q.affine.QuantizeDequantize((), 8)


def network(*, bias: bool = False) -> Any:
    """Stub, two linear layers, one of them per channel."""
    stub: Any = qnn.QuantizedQuantStub()
    stub.output_quantizers[0] = activation()
    layers = [stub]
    for _ in range(2):
        fc = QuantizationMixin.from_module(nn.Linear(4, 4))
        weight = Q.affine.QuantizeDequantize((4, 1), 8, True)
        fc.param_quantizers["weight"] = weight
        if bias:
            source = layers[-1].output_quantizers[0]
            fc.param_quantizers["bias"] = Q.affine.BiasQuantizeDequantize(source, weight)
        fc.output_quantizers[0] = activation()
        layers.append(fc)
    return nn.Sequential(*layers)


def quantizers(model: nn.Module) -> list[Q.QuantizerBase]:
    return [m for m in model.modules() if isinstance(m, Q.QuantizerBase)]


def test_everything_is_calibrated_on_leaving() -> None:
    model = network(bias=True)
    batches = torch.randn(3, 8, 4)
    with qnn.compute_encodings(model), torch.no_grad():
        for x in batches:
            y = model(x)
    assert all(q.is_initialized() for q in quantizers(model))
    assert not any(q.observing for q in quantizers(model))
    assert model[0].output_quantizers[0].max.item() == batches.max().item()
    assert model[1].param_quantizers["weight"].max.flatten().tolist() == pytest.approx(
        model[1].weight.amax(1).clamp(min=0).tolist()
    )
    assert (model(x) - y).abs().max() < 0.1


def test_inside_only_weights_are_quantized() -> None:
    model = network()
    x = torch.randn(8, 4)
    with qnn.compute_encodings(model), torch.no_grad():
        y = model(x)
        for layer in model[1:]:
            x = nn.functional.linear(x, layer.param_quantizers["weight"](layer.weight), layer.bias)
        assert torch.equal(x, y)
        assert type(y) is torch.Tensor


def test_parameters_are_computed_again_unless_frozen() -> None:
    model = network()
    qnn.compute_param_encodings(model)
    weight = model[1].param_quantizers["weight"]
    frozen = model[2].param_quantizers["weight"]
    frozen.allow_overwrite(False)
    before = [q.get_scale().clone() for q in (weight, frozen)]
    with torch.no_grad():
        model[1].weight.mul_(2)
        model[2].weight.mul_(2)
    with qnn.compute_encodings(model):
        model(torch.randn(2, 4))
    assert torch.equal(weight.get_scale(), before[0] * 2)
    assert torch.equal(frozen.get_scale(), before[1])


def test_a_quantizer_of_several_parameters_covers_them_all() -> None:
    model = network()
    shared = Q.affine.QuantizeDequantize((), 8, True)
    for layer, size in ((model[1], 1.0), (model[2], 5.0)):
        layer.param_quantizers["weight"] = shared
        with torch.no_grad():
            layer.weight.fill_(size)
    qnn.compute_param_encodings(model)
    assert shared.max.item() == 5.0


def test_a_quantizer_of_parameter_and_activation_follows_the_parameter() -> None:
    embedding: Any = QuantizationMixin.from_module(nn.Embedding(5, 3))
    shared = Q.affine.QuantizeDequantize((), 8)
    embedding.param_quantizers["weight"] = embedding.output_quantizers[0] = shared
    with embedding.compute_encodings():
        embedding(torch.tensor([0, 1]))
    assert shared.max.item() == embedding.weight.max().item()


def test_errors_leave_the_ranges_of_activations() -> None:
    model = network()
    model[2].output_quantizers[0].where = "output of the second layer"
    with torch.no_grad():
        model[2].bias[0] = torch.nan
    with (
        pytest.raises(CalibrationError, match="output of the second layer"),
        qnn.compute_encodings(model),
    ):
        model(torch.randn(2, 4))
    assert not model[0].output_quantizers[0].is_initialized()
    assert not any(q.observing for q in quantizers(model))


def test_bare_quantizers_are_calibrated_too() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), activation())
    with qnn.compute_encodings(model):
        model(torch.randn(3, 2))
    assert model[1].is_initialized()


def test_a_dead_channel_does_not_lose_its_bias() -> None:
    model = network(bias=True)
    with torch.no_grad():
        model[1].weight[2].mul_(1e-12)
        model[2].weight[1].zero_()
        model[1].bias[2] = model[2].bias[1] = 7.0
    x = torch.randn(64, 4)
    with qnn.compute_encodings(model), torch.no_grad():
        want = model(x)
    with torch.no_grad():
        got = model(x)
    step = model[2].output_quantizers[0].get_scale()
    assert (got - want).abs().max() < 8 * step
    for layer in model[1:]:
        bias = layer.param_quantizers["bias"](layer.bias)
        assert torch.allclose(bias, layer.bias, atol=1e-3)


def test_calibration_does_not_recompute_unchanged_parameters() -> None:
    model = network()
    x = torch.randn(2, 4)
    with torch.no_grad():
        with qnn.compute_encodings(model):
            model(x)
            kept = model[1]._quantized["weight"][2]
            model(x)
            assert model[1]._quantized["weight"][2] is kept
        model(x)
        assert model[1]._quantized["weight"][2] is kept


def test_a_quantized_model_trains() -> None:
    model = network(bias=True)
    x = torch.randn(64, 4)
    with qnn.compute_encodings(model):
        model(x)
    target = torch.randn(64, 4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
