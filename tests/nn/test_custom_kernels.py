"""Kernels of one's own, classes that are never quantized, folded parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant.nn as qnn
from fxquant import QuantizationSimModel
from fxquant import quantization as Q
from fxquant.errors import QuantizationError
from fxquant.nn import QuantizationMixin


@pytest.fixture
def layer() -> Any:
    torch.manual_seed(0)
    made: Any = qnn.QuantizedLinear(4, 3)
    made.input_quantizers[0] = Q.affine.QuantizeDequantize((), 8)
    made.output_quantizers[0] = Q.affine.QuantizeDequantize((), 8)
    made.param_quantizers["weight"] = Q.affine.QuantizeDequantize((3, 1), 8, True)
    with made.compute_encodings():
        made(torch.randn(5, 4))
    return made


@pytest.fixture
def default_kernel() -> Iterator[Any]:
    twin: Any = qnn.QuantizedLinear
    yield twin.set_default_kernel
    twin.set_default_kernel(None)


def integer_linear(
    module: nn.Module, x: Tensor, *, params: Mapping[str, Tensor], output_encodings: Any
) -> Tensor:
    """Sums of integers, as a chip has them, with the zero point of the input taken off before."""
    assert isinstance(x, Q.QuantizedTensor)
    weight = params["weight"]
    assert isinstance(weight, Q.QuantizedTensor)
    x_grid: Any = x.encoding
    w_grid: Any = weight.encoding
    x_int = x.quantized_repr().double() - x_grid.zero_point
    sums = x_int @ weight.quantized_repr().double().t()
    y = sums * (x_grid.scale * w_grid.scale.reshape(-1)) + params["bias"]
    assert output_encodings.bitwidth == 8
    real: Tensor = y.float()
    return real


def test_a_kernel_computes_on_integers(layer: Any) -> None:
    x = torch.randn(5, 4)
    want = layer(x)
    layer.set_kernel(integer_linear)
    assert layer.get_kernel() is integer_linear
    steps = ((layer(x) - want) / layer.output_quantizers[0].get_scale()).abs().max()
    assert steps <= 1
    assert isinstance(layer(x), Q.DequantizedTensor)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    with layer.compute_encodings():
        layer(x)  # without a range there is nothing to compute in
    layer.set_kernel(None)
    assert layer.get_kernel() is None
    layer.set_kernel(lambda *_, **__: None)
    with pytest.raises(QuantizationError, match="FXQ423"):
        layer(x)


def test_a_default_kernel_serves_the_class(layer: Any, default_kernel: Any) -> None:
    default_kernel(integer_linear)
    assert layer.get_kernel() is integer_linear
    layer(torch.randn(5, 4))
    assert qnn.QuantizedConv2d(1, 1, 1).get_kernel() is None


def test_a_quantized_result_is_dequantized(layer: Any) -> None:
    given: Any = layer.output_quantizers[0]

    def kernel(module: Any, x: Tensor, **_: Any) -> Tensor:
        found: Tensor = given(F.linear(x.dequantize(), module.weight)).quantize()
        return found

    layer.set_kernel(kernel)
    assert isinstance(layer(torch.randn(5, 4)), Q.DequantizedTensor)


def test_folded_parameters_are_what_the_module_computes_with(layer: Any) -> None:
    x = torch.randn(5, 4)
    before, weight = layer(x), layer.param_quantizers["weight"](layer.weight).detach()
    layer.fold_param_quantizers()
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer(x), before)
    with layer.compute_encodings():
        layer(x)
    assert torch.equal(layer.param_quantizers["weight"](layer.weight), weight)


def test_ignored_classes_are_never_quantized() -> None:
    @QuantizationMixin.ignore
    class Own(nn.Linear):
        pass

    with pytest.raises(QuantizationError, match="FXQ422"):
        QuantizationMixin.from_module(Own(2, 2))
    x = torch.randn(2, 4)
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(4, 4), Own(4, 4), nn.Linear(4, 2)), x)
    assert type(sim.model.get_submodule("1")) is Own
    sim.compute_encodings([x])
    assert sim.model(x).shape == (2, 2)
