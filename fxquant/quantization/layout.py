"""Which elements of a tensor share one step of the grid: all, a channel, or a block of a channel.

A quantizer of shape `S` has one range for every element of `S`. `S` is laid against the tensor from
the right, as in broadcasting: `()` is one range for everything, `(C, 1, 1, 1)` one for an output
channel of a convolution's weight, `(1, C, 1, 1)` one for an input channel. With a block size every
axis of the tensor is cut into blocks, and `S` counts blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import QuantizationError, ShapeMismatchError

_LARGE = 5 << 20  # elements beyond which passes over memory count


@dataclass(frozen=True)
class Layout:
    """How the ranges of a quantizer are spread over a tensor.

    Args:
        shape: shape of the ranges.
        block_size: elements per block along each axis of `shape`; -1 means the tensor's size
            divided by the number of blocks: the whole axis where there is one block.

    Example:
        >>> Layout((8, 2), (-1, 4)).spread(torch.ones(8, 2)).shape
        torch.Size([8, 1, 2, 1])
    """

    shape: tuple[int, ...] = ()
    block_size: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.block_size is None:
            return
        if len(self.block_size) != len(self.shape):
            raise QuantizationError(
                "FXQ403",
                f"block_size {self.block_size} and shape {self.shape} differ in length",
                fix="give one block size for every axis of the shape",
            )
        if any(b != -1 and b < 1 for b in self.block_size):
            raise QuantizationError(
                "FXQ403",
                f"block_size {self.block_size} is not positive",
                fix="use -1 or sizes >= 1",
            )

    @property
    def single(self) -> bool:
        """True if one range serves the whole tensor."""
        return math.prod(self.shape) == 1 and self.block_size is None

    @property
    def granularity(self) -> str:
        """`pertensor`, `perchannel` or `blockwise`."""
        if self.block_size is not None:
            return "blockwise"
        return "pertensor" if self.single else "perchannel"

    def split(self, x: Tensor) -> Tensor:
        """The tensor seen in blocks: `[..., n1 * b1, n2 * b2]` -> `[..., n1, b1, n2, b2]`.

        Raises:
            ShapeMismatchError: the ranges cannot be laid against a tensor of this shape.
        """
        if self.block_size is None:
            if not self.single:
                self._check_channels(x)
            return x
        return x.reshape(self._blocked_shape(x, self.block_size))

    def spread(self, ranges: Tensor) -> Tensor:
        """Values of the quantizer's shape, shaped to broadcast against `split(x)`."""
        if self.single:
            return ranges.reshape(())
        if self.block_size is None:
            return ranges.reshape(self.shape)
        return ranges.reshape([size for n in self.shape for size in (n, 1)])

    def rows(self, x: Tensor) -> Tensor:
        """All elements of one range in one row: `[...]` -> `[ranges, elements]`."""
        if self.single:
            return flat(x).unsqueeze(0)
        y = self.split(x)
        kept, reduced = self._axes(y)
        return y.permute(kept + reduced).reshape(math.prod(self.shape), -1)

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest element under every range: two tensors of the quantizer's shape."""
        if self.single and torch.compiler.is_compiling():
            low, high = x.amin(), x.amax()  # in one row it would not know the order in memory
        elif self.single:
            y = flat(x)
            # `aminmax` is one pass and slow, the others are two passes and vectorized
            low, high = torch.aminmax(y) if y.numel() > _LARGE else (y.amin(), y.amax())
        else:
            y = self.split(x)
            _, reduced = self._axes(y)
            low, high = (y.amin(reduced), y.amax(reduced)) if reduced else (y, y)
        return low.reshape(self.shape), high.reshape(self.shape)

    def _axes(self, y: Tensor) -> tuple[list[int], list[int]]:
        """Axes of `split(x)` along which the range changes, and those along which it does not."""
        sizes = self.shape
        if self.block_size is not None:
            sizes = tuple(size for n in self.shape for size in (n, 1))
        sizes = (1,) * (y.dim() - len(sizes)) + sizes
        kept = [axis for axis, size in enumerate(sizes) if size != 1]
        return kept, [axis for axis, size in enumerate(sizes) if size == 1]

    def _check_channels(self, x: Tensor) -> None:
        n = len(self.shape)
        fits = (
            x.dim() >= n
            and all(
                a == 1 or a == b  # not `in`: a compiler cannot look for a symbolic size
                for a, b in zip(self.shape, x.shape[x.dim() - n :], strict=True)
            )
        )
        if not fits:
            raise ShapeMismatchError(
                "FXQ404",
                f"a quantizer of shape {self.shape} cannot be laid against a tensor of shape "
                f"{tuple(x.shape)}",
                fix="give it the tensor's size along the quantized axis and 1 along the others",
            )

    def _blocked_shape(self, x: Tensor, block_size: tuple[int, ...]) -> list[int]:
        n = len(self.shape)
        if x.dim() < n:
            raise ShapeMismatchError(
                "FXQ404",
                f"a quantizer of shape {self.shape} needs a tensor of {n} or more axes, "
                f"not {tuple(x.shape)}",
                fix="make the quantizer with as many axes as the tensor has, or fewer",
            )
        sizes = list(x.shape[: x.dim() - n])
        for axis, (count, block) in enumerate(zip(self.shape, block_size, strict=True)):
            size = x.shape[x.dim() - n + axis]
            length = size // count if block == -1 else block
            if length * count != size:
                raise ShapeMismatchError(
                    "FXQ405",
                    f"axis {axis} of size {size} cannot be cut into {count} blocks"
                    + (f" of {block}" if block != -1 else ""),
                    fix="choose a block size that divides the axis",
                )
            sizes += [count, length]
        return sizes


def flat(x: Tensor) -> Tensor:
    """All elements in one row, in memory order where that spares a copy: `[...]` -> `[n]`."""
    if x.is_contiguous():
        return x.view(-1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).view(-1)
    return x.reshape(-1)
