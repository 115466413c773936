"""Attention in parts computes what the fused kernel computes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.graph.printer import dump
from fxquant.passes import DecomposeAttention
from fxquant.prepare import prepare_model

Q, K = (2, 4, 5, 8), (2, 4, 7, 8)


class Attention(nn.Module):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.kwargs = kwargs

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **self.kwargs)


CASES: dict[str, tuple[dict[str, Any], tuple[Tensor, ...]]] = {
    "plain": ({}, (torch.randn(Q), torch.randn(K), torch.randn(K))),
    "scale": ({"scale": 0.7}, (torch.randn(Q), torch.randn(K), torch.randn(K))),
    "causal": ({"is_causal": True}, (torch.randn(Q), torch.randn(Q), torch.randn(Q))),
    "causal, longer keys": ({"is_causal": True}, (torch.randn(Q), torch.randn(K), torch.randn(K))),
    "float mask": ({}, (torch.randn(Q), torch.randn(K), torch.randn(K), torch.randn(5, 7))),
    "bool mask": (
        {},
        (torch.randn(Q), torch.randn(K), torch.randn(K), torch.ones(5, 7).tril(2) > 0),
    ),
    "grouped": (
        {"enable_gqa": True},
        (torch.randn(Q), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_parts_compute_what_the_kernel_computes(name: str) -> None:
    kwargs, inputs = CASES[name]
    prepared = prepare_model(Attention(**kwargs), inputs)
    parts = copy.deepcopy(prepared)
    DecomposeAttention()(parts)
    assert "scaled_dot_product_attention" not in dump(parts)
    whole, apart = prepared(*inputs), parts(*inputs)
    # two sums of at most 8 and 7 float32 terms in another order, and an exponential between them
    bound = 16 * math.sqrt(8 * 7) * torch.finfo(torch.float32).eps * float(whole.abs().max())
    assert float((whole - apart).abs().max()) <= bound


def test_golden() -> None:
    kwargs, inputs = CASES["float mask"]
    parts = prepare_model(Attention(**kwargs), inputs)
    DecomposeAttention()(parts)
    calls = [line.split(" = ")[1].split("(")[0] for line in dump(parts).splitlines()[4:-1]]
    assert calls == [
        "transpose[key_transpose]",
        "matmul[scores]",
        "mul[scale]",
        "add[mask]",
        "softmax[softmax]",
        "matmul[attention]",
    ]
