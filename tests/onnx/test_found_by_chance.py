"""Small networks that random ones led to: each was wrong once."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fxquant.sim import QuantizationSimModel


class SlicedEmbedding(nn.Module):
    """Reads the first token's embedding beside all of them.

    onnxruntime moved the table's int8 DequantizeLinear through the slice and could not load the
    model then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        return self.head(x[:, :1] + x)  # type: ignore[no-any-return]


def test_a_slice_of_an_embedding_can_be_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (3, 5))
    sim = QuantizationSimModel(SlicedEmbedding(), tokens, "min_max")
    sim.compute_encodings([tokens])
    assert sim.export(tmp_path, "model").proven
