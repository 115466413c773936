"""A product that adds something is a product and a sum in the simulation, both with grids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.passes import SeparateSums
from fxquant.quantization.tensor import plain
from fxquant.targets import load_target
from tests.helpers.golden import assert_rewrites, ready

if TYPE_CHECKING:
    from pathlib import Path

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


class Conv1D(nn.Module):
    """The linear layer of GPT-2: a weight `[in, out]`, in one call with the bias."""

    def __init__(self, beta: float = 1, alpha: float = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(8, 6, generator=generator))
        self.bias = nn.Parameter(torch.randn(6, generator=generator))
        self.beta, self.alpha = beta, alpha

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight, beta=self.beta, alpha=self.alpha)


class Batched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(8, 8, 8)
        return torch.baddbmm(x.relu(), x, x.softmax(-1), beta=0.5, alpha=2.0)


def test_golden() -> None:
    assert_rewrites(SeparateSums(), Conv1D(), """
          %x       = input
          %bias    = attr[bias]
          %weight  = attr[weight]
        - %addmm   = addmm[addmm](%bias, %x, %weight)
        - return %addmm
        + %product = matmul[product](%x, %weight)
        + %sum_1   = add[sum](%product, %bias)
        + return %sum_1
    """, inputs=X)  # fmt: skip


def test_golden_with_factors() -> None:
    assert_rewrites(SeparateSums(), Batched(), """
          %x              = input
          %reshape        = reshape[reshape](%x, 8, 8, 8)
          %relu           = relu[relu](%reshape)
          %softmax        = softmax[softmax](%reshape)
        - %baddbmm        = baddbmm[baddbmm](%relu, %reshape, %softmax, beta=·, alpha=·)
        - return %baddbmm
        + %product        = matmul[product](%reshape, %softmax)
        + %scaled_product = mul[scaled_product](%product, ·)
        + %scaled_summand = mul[scaled_summand](%relu, ·)
        + %sum_1          = add[sum](%scaled_product, %scaled_summand)
        + return %sum_1
    """, inputs=X)  # fmt: skip


@pytest.mark.parametrize("factors", [(1, 1), (0.5, 2.0), (1, -1.5), (2, 1)])
def test_values_are_equal_but_for_rounding(factors: tuple[float, float]) -> None:
    """Eight products and a sum of float32 numbers: errors of some units in the last place."""
    net = Conv1D(*factors).eval().requires_grad_(False)
    gm = ready(net, SeparateSums.needs, X)
    assert SeparateSums()(gm).modified
    exact = net(X)
    assert torch.allclose(gm(X), exact, rtol=0, atol=16 * 2.0**-23 * float(exact.abs().max()))


def test_what_is_multiplied_by_zero_stays_ignored() -> None:
    """`beta=0` ignores NaN, a product with zero does not."""
    gm = ready(Conv1D(beta=0).eval(), SeparateSums.needs, X)
    outcome = SeparateSums()(gm)
    assert not outcome.modified
    assert [s.reason for s in outcome.skips] == [
        "it adds nothing: what it is given to add may even be NaN"
    ]


class Products(nn.Module):
    """A product of activations that is added to another one, and a product of the sum."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(x, x.relu(), x.tanh(), alpha=0.25)
        return y.relu() @ x


def test_products_and_sums_are_proven(tmp_path: Path) -> None:
    net = Products().eval()
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    sim = QuantizationSimModel(net, x)
    sim.compute_encodings([x])
    proof = sim.export(tmp_path, "net", x)
    assert proof.proven
    assert {row.name for row in proof.operators} >= {"product", "sum", "matmul"}
    exact = net(x).detach()
    noise = (plain(sim.model(x)).detach() - exact).square().sum()
    # three tensors of 8 bits in a row, each with at least 40 dB of its own
    assert 10 * torch.log10(exact.square().sum() / noise) > 35


def test_a_target_without_products_keeps_the_call() -> None:
    target = load_target("amd_aie2")
    assert target.operators.get("matmul") is None
    sim = QuantizationSimModel(Batched().eval(), X, target=target)
    assert "baddbmm" in {n.target for n in sim.model.graph.nodes}
