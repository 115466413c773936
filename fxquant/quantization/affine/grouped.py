"""Blocks whose scales are small integers times the scale of their group (LPBQ)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.errors import QuantizationError
from fxquant.quantization.affine.quantizers import QuantizeDequantize
from fxquant.quantization.encodings import GroupedBlockEncoding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.quantization.analyzers import EncodingAnalyzer
    from fxquant.quantization.encodings import AffineEncoding


class GroupedBlockQuantizeDequantize(QuantizeDequantize):
    """Block-wise quantization that stores one float scale a group and one small integer a block.

    The scale of a block is `k * group_scale` with an integer `k` in `1 .. 2 ** (D - B)`, where `B`
    is the bitwidth and `D` the decompressed one; the largest block of a group has the largest `k`.

    Args:
        shape: number of blocks along each axis.
        bitwidth: bits of the grid.
        symmetric: must be True.
        decompressed_bw: bits of the integers once the small integers are multiplied in.
        encoding_analyzer: how a range is chosen from observed tensors.
        block_size: elements per block along each axis, -1 to derive it.
        block_grouping: blocks per group along each axis; -1 means all of them.
    """

    def __init__(
        self,
        shape: Sequence[int],
        bitwidth: int = 4,
        symmetric: bool = True,
        decompressed_bw: int = 8,
        encoding_analyzer: EncodingAnalyzer | None = None,
        block_size: Sequence[int] | None = None,
        block_grouping: Sequence[int] | None = None,
    ) -> None:
        super().__init__(shape, bitwidth, symmetric, encoding_analyzer, block_size=block_size)
        grouping = (1,) * len(self.shape) if block_grouping is None else tuple(block_grouping)
        if not symmetric or decompressed_bw < bitwidth or block_size is None:
            raise QuantizationError(
                "FXQ411",
                f"grouped blocks need a symmetric grid, blocks and decompressed_bw >= {bitwidth}",
                fix="pass symmetric=True, block_size=(1, 64) and decompressed_bw=8",
            )
        if len(grouping) != len(self.shape) or any(
            g != -1 and (g < 1 or n % g) for n, g in zip(self.shape, grouping, strict=False)
        ):
            raise QuantizationError(
                "FXQ411",
                f"block_grouping {grouping} does not divide {self.shape} blocks",
                fix="give one divisor of the number of blocks for every axis, or -1",
            )
        self.block_grouping = grouping
        self.decompressed_bw = decompressed_bw

    def _scale(self, low: Tensor, high: Tensor) -> Tensor:
        exact = super()._scale(low, high)
        factor, group = self._factors(exact.detach())
        scale = factor * group
        # small integers are constants for gradients: the step of a block learns as if it were free
        return scale.detach() + (exact - exact.detach()) if exact.requires_grad else scale

    def _factors(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Small integers of the blocks, and the scale of their group: `[S] -> [S], [S]`."""
        largest = 2 ** (self.decompressed_bw - self.bitwidth)
        sizes = [
            size
            for n, g in zip(self.shape, self.block_grouping, strict=True)
            for size in ((1, n) if g == -1 else (n // g, g))
        ]
        grouped = scale.reshape(sizes)
        inner = list(range(1, len(sizes), 2))
        group = (grouped.amax(inner, keepdim=True) / largest).expand(sizes).reshape(self.shape)
        return torch.round(scale / group).clamp(1, largest), group

    def _encoding(self, scale: Tensor, offset: Tensor) -> AffineEncoding:
        factor, group = self._factors(scale)
        return GroupedBlockEncoding(
            scale,
            offset,
            self.qmin,
            self.qmax,
            True,
            self.block_size,
            block_grouping=self.block_grouping,
            decompressed_bw=self.decompressed_bw,
            per_block_int_scale=factor,
            per_channel_scale=group,
        )

    def extra_repr(self) -> str:
        """Shape, blocks, groups and grid."""
        return (
            f"{super().extra_repr()}, block_grouping={self.block_grouping}, "
            f"decompressed_bw={self.decompressed_bw}"
        )
