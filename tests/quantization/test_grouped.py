"""Blocks whose scales are small integers times the scale of their group."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxquant.quantization as Q
from fxquant.errors import QuantizationError

Grouped = Q.affine.GroupedBlockQuantizeDequantize


def calibrated(grouping: tuple[int, int]) -> Any:
    q = Grouped((6, 4), 4, decompressed_bw=8, block_size=(-1, 8), block_grouping=grouping)
    with q.compute_encodings():
        q(torch.randn(6, 32))
    return q


@pytest.mark.parametrize("grouping", [(1, -1), (1, 2), (-1, -1), (3, 4), (1, 1)])
def test_scales_are_small_integers_of_their_group(grouping: tuple[int, int]) -> None:
    encoding = calibrated(grouping).get_encodings()
    assert isinstance(encoding, Q.GroupedBlockEncoding)
    factor, group = encoding.per_block_int_scale, encoding.per_channel_scale
    assert factor is not None
    assert group is not None
    assert torch.equal(factor * group, encoding.scale)
    assert torch.equal(factor, factor.round())
    assert factor.min() >= 1
    sizes = [n if g == -1 else g for n, g in zip((6, 4), grouping, strict=True)]
    blocks = factor.reshape(6 // sizes[0], sizes[0], 4 // sizes[1], sizes[1])
    assert bool((blocks.amax((1, 3)) == 16).all())


def test_blocks_of_their_own_are_plain_blocks() -> None:
    x = torch.randn(6, 32)
    grouped = Grouped((6, 4), 4, decompressed_bw=8, block_size=(-1, 8))
    plain = Q.affine.QuantizeDequantize((6, 4), 4, True, block_size=(-1, 8))
    for q in (grouped, plain):
        with q.compute_encodings():
            q(x)
    torch.testing.assert_close(grouped.get_scale(), plain.get_scale())


def test_gradients_reach_tensor_and_ranges() -> None:
    q = calibrated((1, -1))
    x = torch.randn(6, 32, requires_grad=True)
    (q(x) ** 2).sum().backward()
    assert x.grad is not None
    assert bool(((q.min.grad != 0) | (q.max.grad != 0)).all())


@pytest.mark.parametrize(
    "options",
    [
        {"symmetric": False},
        {"decompressed_bw": 3},
        {"block_grouping": (1, 3)},
        {"block_grouping": (1,)},
        {"block_grouping": (1, 0)},
    ],
)
def test_impossible_groups_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(QuantizationError, match="FXQ411"):
        Grouped((6, 4), 4, block_size=(-1, 8), **options)


def test_repr() -> None:
    assert repr(calibrated((1, -1))).endswith("block_grouping=(1, -1), decompressed_bw=8)")
