"""Bags of rows of a table, as rows of words and as flat words with offsets."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant.onnx.lowering.lower import lower
from tests.helpers.lowering import assert_equal, run
from tests.helpers.nets import prepared

ALL = itertools.product(("sum", "mean", "max"), (False, True), (None, 3), (False, True))
KINDS = [kind for kind in ALL if kind[0] == "sum" or not kind[3]]


class Bags(nn.Module):
    """A bag of embeddings."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 8, **options)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.bag(*inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("mode", "last", "padding", "weighed"), KINDS)
def test_flat_words_with_other_offsets(
    mode: str, last: bool, padding: int | None, weighed: bool
) -> None:
    """Bags may be empty, and end elsewhere than those of the example."""

    def inputs(*offsets: int) -> list[Tensor]:
        starts = torch.tensor((*offsets, 14) if last else offsets)
        weights = [torch.randn(14)] if weighed else []
        return [torch.randint(0, 20, (14,)), starts, *weights]

    net = Bags(mode=mode, include_last_offset=last, padding_idx=padding)
    example = inputs(0, 2, 2, 9)
    lowered = lower(prepared(net, *example), (tuple(example), {}))
    assert not lowered.fallbacks
    for given in (example, inputs(0, 5, 5, 12), inputs(0, 0, 1, 3)):
        with torch.no_grad():
            assert_equal(run(lowered, given, optimized=True), net(*given))
