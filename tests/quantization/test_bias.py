"""A bias lies on the grid of the int32 accumulator it is added to."""

from __future__ import annotations

import copy

import pytest
import torch

import fxquant.quantization as Q
from fxquant.errors import ShapeMismatchError, UncalibratedError


def parts(
    *weight: int, channels: int = 8
) -> tuple[
    Q.affine.QuantizeDequantize, Q.affine.QuantizeDequantize, Q.affine.BiasQuantizeDequantize
]:
    source = Q.affine.QuantizeDequantize((), 8)
    source.set_range(-1.0, 3.0)
    own = Q.affine.QuantizeDequantize(weight, 8, True)
    own.set_range(-torch.rand(weight) - 0.1, torch.rand(weight) + 0.1)
    return source, own, Q.affine.BiasQuantizeDequantize(source, own)


def test_step_is_the_float32_product() -> None:
    source, weight, bias = parts(8, 1, 1, 1)
    scale = bias.get_scale()
    assert scale is not None
    first, second = source.get_scale(), weight.get_scale()
    assert first is not None
    assert second is not None
    assert torch.equal(scale, first * second.flatten())
    assert bias.shape == (8,)
    assert torch.equal(bias.get_offset(), torch.zeros(8))  # type: ignore[arg-type]
    assert (bias.bitwidth, bias.signed, bias.symmetric) == (32, True, True)
    x = torch.randn(8)
    y = bias(x)
    assert isinstance(y, Q.DequantizedTensor)
    assert torch.equal(y, torch.round(x / scale) * scale)
    assert y.quantized_repr().dtype is torch.int32


def test_step_follows_both_quantizers() -> None:
    source, weight, bias = parts(8, 1)
    before = bias.get_scale()
    assert before is not None
    source.set_range(-2.0, 6.0)
    torch.testing.assert_close(bias.get_scale(), before * 2)
    weight.set_range(weight.min * 2, weight.max * 2)
    torch.testing.assert_close(bias.get_scale(), before * 4)


def test_per_tensor_weights_and_groups_of_transposed_convolutions() -> None:
    _, _, bias = parts()
    assert bias.shape == (1,)
    assert bias(torch.randn(5)).shape == (5,)
    _, weight, bias = parts(1, 4, 1, 1)
    y = bias(torch.full((8,), 0.1234567))
    assert isinstance(y, Q.DequantizedTensor)
    assert y.encoding is not None
    assert torch.equal(y.encoding.scale, bias.get_scale().repeat(2))  # type: ignore[arg-type, union-attr]
    with pytest.raises(ShapeMismatchError, match="FXQ412"):
        bias(torch.zeros(7))
    assert weight.is_initialized()


def test_saturation_is_that_of_int32() -> None:
    _, _, bias = parts(1, 1, 1, 1)
    y = bias(torch.tensor([1e30]))
    assert y.quantized_repr().item() == 2**31 - 128  # the largest float32 below 2**31


def test_waits_for_both() -> None:
    source, weight = Q.affine.QuantizeDequantize((), 8), Q.affine.QuantizeDequantize((), 8, True)
    source.where = "input of fc"
    bias = Q.affine.BiasQuantizeDequantize(source, weight)
    assert not bias.is_initialized()
    assert bias.get_encodings() is None
    assert bias.get_min() is None
    with pytest.raises(UncalibratedError, match="waits for input of fc"):
        bias(torch.zeros(1))
    with bias.compute_encodings():
        assert bias(torch.ones(1)).item() == 1.0
    source.set_range(0.0, 1.0)
    weight.set_range(-1.0, 1.0)
    assert bias.is_initialized()


def test_inputs_must_have_one_step() -> None:
    source = Q.affine.QuantizeDequantize((4,), 8)
    source.set_range(-1.0, 1.0)
    weight = Q.affine.QuantizeDequantize((), 8, True)
    weight.set_range(-1.0, 1.0)
    bias = Q.affine.BiasQuantizeDequantize(source, weight)
    with pytest.raises(ShapeMismatchError, match="FXQ413"):
        bias(torch.zeros(1))


def test_owns_nothing_and_is_copied_with_its_sources() -> None:
    source, weight, bias = parts(8, 1)
    assert not list(bias.parameters())
    assert not bias.state_dict()
    assert not list(bias.children())
    model = torch.nn.ModuleList([source, weight, bias])
    twin = copy.deepcopy(model)
    assert twin[2].input_quantizer is twin[0]
    assert twin[2].weight_quantizer is twin[1]


def test_gradient_is_that_of_the_identity() -> None:
    _, _, bias = parts(8, 1)
    x = torch.randn(8, requires_grad=True)
    bias(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(8))


def test_needed_step() -> None:
    _, weight, bias = parts(8, 1)
    assert bias.needed_step(torch.randn(8)) is None
    with torch.no_grad():
        weight.min[3] = weight.max[3] = 1e-12
    values = torch.ones(8)
    step = bias.needed_step(values)
    assert step is not None
    assert bias(values)[3].item() < 0.1
    weight.widen(step)
    assert torch.allclose(bias(values), values, atol=1e-4)
