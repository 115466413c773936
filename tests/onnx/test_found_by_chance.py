"""Small networks that random ones led to: each was wrong once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def proven(folder: Path, **options: Any) -> bool:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (3, 5))
    sim = QuantizationSimModel(SlicedEmbedding(), tokens, "min_max", **options)
    sim.compute_encodings([tokens])
    return sim.export(folder, "model").proven


def test_a_slice_of_an_embedding_can_be_loaded(tmp_path: Path) -> None:
    assert proven(tmp_path)


def test_a_table_of_four_bits_is_well_formed(tmp_path: Path) -> None:
    # ONNX has no Gather of integers below a byte
    assert proven(tmp_path, default_param_bw=4)
