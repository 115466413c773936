"""Layers as matrix products: weight times columns is what the module computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxquant.ptq.layers.columns import product_of
from fxquant.ptq.moments import Moments, merge
from fxquant.ptq.solving.solver import damp, inverse_of

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "linear of a vector": (nn.Linear(6, 4), (6,)),
    "linear of rank 4": (nn.Linear(6, 4), (2, 3, 2, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9)),
    "conv2d": (
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(1, 0)),
        (2, 4, 9, 8),
    ),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 6, 6)),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)), (2, 4, 6, 6)),
    "mostly padding": (nn.Conv2d(4, 6, 5, padding=2, stride=2), (2, 4, 1, 2)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 6, 6)),
    "circular": (nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"), (2, 4, 6)),
    "conv3d": (nn.Conv3d(2, 4, 2, padding=1), (2, 2, 3, 4, 3)),
    "one sample without a batch": (nn.Conv2d(4, 6, 3), (4, 6, 6)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (2, 4, 5)),
    "conv_transpose2d": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (2, 4, 5, 4),
    ),
    "conv_transpose2d, dilated": (
        nn.ConvTranspose2d(4, 6, (3, 2), stride=(3, 1), padding=(3, 0), dilation=(1, 2)),
        (2, 4, 5, 4),
    ),
    "conv_transpose3d": (nn.ConvTranspose3d(2, 4, 2, stride=2), (2, 2, 3, 2, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_weight_times_columns_is_the_layer(name: str) -> None:
    module, shape = LAYERS[name]
    x = torch.randn(shape)
    y = module(x).detach()
    product: Any = product_of(module)
    weight = product.matrix(module.weight)
    chosen = torch.randperm(product.positions(y))[:40]
    columns, wanted = product.inputs(x, y, chosen), product.outputs(y, chosen)
    bias: Any = module.bias
    found = torch.bmm(columns, weight.mT) + bias.reshape(product.groups, 1, -1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    dead = ~product.reached(x, y)
    assert not columns[:, :, dead].any()
    back = product.weight(weight, tuple(module.weight.shape))  # type: ignore[arg-type]
    assert torch.equal(back, module.weight)  # type: ignore[arg-type]


def test_other_modules_are_no_products() -> None:
    assert product_of(nn.LSTM(3, 4)) is None
    assert product_of(nn.ReLU()) is None
    assert product_of(nn.Embedding(3, 4)) is None


@pytest.mark.parametrize("mean", [0.0, 3000.0])
def test_moments_of_pieces_are_those_of_the_whole(mean: float) -> None:
    x, y = torch.randn(2, 5000, 3) + mean, torch.randn(2, 5000, 4) - mean
    parts = x.split(1700, 1), y.split(1700, 1)
    found = None
    for a, b in reversed(list(zip(*parts, strict=True))):
        found = merge(Moments.of(a, b), found)
    assert found is not None
    assert found.count == 5000
    wide = x.double() - x.double().mean(1, keepdim=True)
    other = y.double() - y.double().mean(1, keepdim=True)
    # data of float32 with a mean of 3000 differ by 2e-4 from what they would be: not so the sums
    torch.testing.assert_close(found.xx, wide.mT @ wide, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(found.yx, other.mT @ wide, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(found.mean_x, x.double().mean(1), rtol=1e-9, atol=1e-7)


def test_the_bias_is_the_mean_error_of_the_samples() -> None:
    x, y = torch.randn(1, 300, 5) + 2, torch.randn(1, 300, 3)
    weight = torch.randn(1, 3, 5, dtype=torch.float64)
    moments = Moments.of(x, y)
    assert moments is not None
    left = y.double() - x.double() @ weight.mT
    torch.testing.assert_close(moments.bias(weight), left.mean(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [192, 193, 500])  # one block of columns, two and three
def test_products_of_many_columns_are_formed_in_blocks(width: int) -> None:
    x = torch.randn(2, 60, width) + 3
    moments = Moments.of(x, x[:, :, :5])
    assert moments is not None
    left = x.double() - x.double().mean(1, keepdim=True)
    torch.testing.assert_close(moments.xx, left.mT @ left, rtol=1e-4, atol=1e-4)
    assert torch.equal(moments.xx[:, -1, :5], moments.xx[:, :5, -1])


def test_the_target_is_the_least_squares_solution() -> None:
    x = torch.randn(1, 500, 6)
    noisy = x + 0.3 * torch.randn(1, 500, 6)
    weight = torch.randn(1, 4, 6)
    moments = Moments.of(noisy, x @ weight.mT)
    assert moments is not None
    inverse = torch.linalg.inv(moments.second(centred=False))
    target = moments.target(weight.double(), inverse, centred=False)
    want = torch.linalg.lstsq(noisy.double(), (x @ weight.mT).double()).solution.mT
    torch.testing.assert_close(target, want, rtol=1e-4, atol=1e-4)


def test_constant_inputs_leave_moments_that_can_be_inverted() -> None:
    values = torch.rand(20, 1, 9, generator=torch.Generator().manual_seed(0)) * 5000
    x = values.expand(20, 3001, 9)  # rounding of the means is all that is left of their variance
    moments = Moments.of(x, x[:, :, :1])
    assert moments is not None
    second = moments.second(centred=True)
    assert not bool(second.any())
    inverse_of(damp(second, 0.01))
