"""The text of a graph: no floats, no ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxquant.graph.printer import dump
from tests.helpers.golden import assert_dump, recorded

X = torch.randn(2, 6, 4)


class Everything(nn.Module):
    """One of each kind of argument."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.act(x[..., None, 1:3, ::2] * 0.5) + self.w
        z = torch.cat([y, y], dim=-1).to(torch.float64)
        return {"y": (y,), "z": [z, None], "size": x.size(0)}


def test_every_kind_of_node_and_argument() -> None:
    assert_dump(
        recorded(Everything(), X),
        """
        %x       = input
        %getitem = getitem(%x, (..., None, 1:3, ::2))
        %mul     = .mul(%getitem, ·)
        %act     = relu_[act](%mul)
        %w       = attr[w]
        %add     = .add(%act, %w)
        %cat     = cat([%add, %add], dim=-1)
        %to      = .to(%cat, float64)
        %size    = .size(%x, 0)
        return {'y': (%add,), 'z': [%to, None], 'size': %size}
    """,
    )


def test_notes_stand_behind_the_line() -> None:
    gm = recorded(nn.ReLU(), X)
    text = dump(gm, lambda n: "here" if n.op == "placeholder" else None)
    assert text.splitlines()[0].endswith("= input  # here")
