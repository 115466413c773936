"""Sorts of a simulation keep the order of equal values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxquant.graph.pass_infra import Fact
from fxquant.passes import StableSorts
from tests.helpers.golden import assert_rewrites, ready

X = torch.arange(64).remainder(3).float().view(2, 32)


class Sorts(nn.Module):
    """All that sorts."""

    def forward(self, x: Tensor) -> Any:
        return torch.sort(x)[1], torch.argsort(x, -1, True), torch.topk(x, 5)[1]


def test_sorts_become_stable() -> None:
    gm = ready(Sorts(), frozenset({Fact.MODULES_ONLY}), X)
    assert_rewrites(
        StableSorts(),
        gm,
        """
              %x         = input
            - %sort      = sort[sort](%x)
            + %sort      = sort[sort](%x, stable=True)
              %getitem   = getitem(%sort, 1)
            - %argsort   = argsort[argsort](%x, descending=True)
            + %argsort   = argsort[argsort](%x, descending=True, stable=True)
            - %topk      = topk[topk](%x, 5)
            + %topk      = topk[topk](%x, 5, stable=True)
              %getitem_1 = getitem(%topk, 1)
              return (%getitem, %argsort, %getitem_1)
        """,
    )
    down = torch.sort(X, stable=True, descending=True).indices
    expected = (torch.sort(X, stable=True).indices, down, down[:, :5])
    assert all(torch.equal(a, b) for a, b in zip(gm(X), expected, strict=True))
