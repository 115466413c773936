"""A quantizer's result depends on the values of a tensor, never on how they lie in memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import fxquant.quantization as Q

# larger than the pieces that the kernels cut large tensors into
_SHAPE = (3, 40, 60, 80)


def _quantizer(shape: tuple[int, ...]) -> Q.affine.QuantizeDequantize:
    quantizer = Q.affine.QuantizeDequantize(shape, bitwidth=8, symmetric=False)
    high = torch.linspace(0.5, 3.0, max(1, quantizer.min.numel())).reshape(shape)
    quantizer.set_range(-high, high * 0.9)
    return quantizer


def _layouts(x: Tensor) -> list[Tensor]:
    """The same values, in memory as the results of permuting, slicing and expanding leave them."""
    found = []
    for order in itertools.permutations(range(x.dim())):
        back = [order.index(axis) for axis in range(x.dim())]
        found.append(x.permute(order).contiguous().permute(back))
    wide = torch.randn(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    found.append(wide[..., ::2])
    return found


@pytest.mark.parametrize("shape", [(), (40, 1, 1), (80,)])
def test_every_memory_layout_gives_the_same_values_and_gradients(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, g = torch.randn(_SHAPE), torch.randn(_SHAPE)
    quantizer = _quantizer(shape)
    wanted, (slope, *_) = _run(quantizer, x, g)
    for other in _layouts(x):
        with torch.no_grad():
            assert torch.equal(quantizer(other), wanted)
        found, (d, low, high) = _run(quantizer, other, g)
        assert torch.equal(found, wanted)
        assert torch.equal(d, slope)
        assert low.shape == high.shape == quantizer.min.shape


def _run(
    quantizer: Q.affine.QuantizeDequantize, x: Tensor, g: Tensor
) -> tuple[Tensor, list[Tensor]]:
    leaf = x.detach().requires_grad_()
    found = quantizer(leaf)
    return found.detach(), list(torch.autograd.grad(found, [leaf, quantizer.min, quantizer.max], g))


def test_one_range_for_a_large_permuted_result() -> None:
    torch.manual_seed(0)
    parts = torch.randn(2, 3136, 288).reshape(2, 3136, 3, 3, 32).permute(2, 0, 3, 1, 4)
    x = parts.unbind(0)[1] * 0.17
    quantizer = _quantizer(())
    with torch.no_grad():
        assert torch.equal(quantizer(x), quantizer(x.contiguous()))
