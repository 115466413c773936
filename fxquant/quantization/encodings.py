"""Encodings: what the numbers of a quantized tensor mean, without the quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor

from fxquant.errors import QuantizationError
from fxquant.quantization import kernels
from fxquant.quantization.layout import Layout
from fxquant.quantization.range_to_qparams import IntegerRange

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False, init=False)
class AffineEncoding:
    """Real value = (integer + offset) * scale.

    Args:
        scale: step of the grid, float32, of the quantizer's shape.
        offset: minus the zero point of ONNX, float32, of the quantizer's shape.
        qmin: smallest integer; or, in the place of both ends, `bitwidth` and `signed`.
        qmax: largest integer.
        symmetry: True if the zero point lies in the middle of the grid by construction.
        block_size: elements per block along each axis of the scale, or None.

    Example:
        >>> scale, offset = torch.tensor(0.1), torch.tensor(0.0)
        >>> AffineEncoding(scale, offset, -128, 127).dtype, AffineEncoding(scale, offset, 4).qmax
        (torch.int8, 15)
    """

    scale: Tensor
    offset: Tensor
    qmin: int
    qmax: int
    symmetry: bool = False
    block_size: tuple[int, ...] | None = None

    @overload
    def __init__(
        self,
        scale: Tensor,
        offset: Tensor,
        qmin: int,
        qmax: int,
        symmetry: bool = False,
        block_size: Sequence[int] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        scale: Tensor,
        offset: Tensor,
        bitwidth: int,
        signed: bool = False,
        symmetry: bool = False,
        block_size: Sequence[int] | None = None,
    ) -> None: ...
    def __init__(self, scale: Tensor, offset: Tensor, *args: Any, **kwargs: Any) -> None:
        given = _Grid.of(args, kwargs)
        blocks = None if given.block_size is None else tuple(given.block_size)
        values = (scale, offset, *given.ends(), given.symmetry, blocks)
        for name, value in zip(_FIELDS, values, strict=True):
            object.__setattr__(self, name, value)

    @property
    def bitwidth(self) -> int:
        """Bits that are needed to count the integers."""
        return (self.qmax - self.qmin).bit_length()

    @property
    def num_steps(self) -> int:
        """Steps between the smallest and the largest integer."""
        return self.qmax - self.qmin

    @property
    def mapping(self) -> str:
        """How integers stand for real values."""
        return "affine"

    @property
    def signed(self) -> bool:
        """True if the grid has negative integers."""
        return self.qmin < 0

    @property
    def zero_point(self) -> Tensor:
        """The integer that stands for 0.0, as ONNX has it."""
        return 0.0 - self.offset

    @property
    def min(self) -> Tensor:
        """Smallest real value of the grid."""
        return (self.qmin + self.offset) * self.scale

    @property
    def max(self) -> Tensor:
        """Largest real value of the grid."""
        return (self.qmax + self.offset) * self.scale

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the scale."""
        return tuple(self.scale.shape)

    @property
    def granularity(self) -> str:
        """`pertensor`, `perchannel` or `blockwise`."""
        return Layout(self.shape, self.block_size).granularity

    @property
    def dtype(self) -> torch.dtype:
        """Smallest integer type of PyTorch that holds the grid."""
        for dtype in _INTEGERS:
            info = torch.iinfo(dtype)
            if info.min <= self.qmin and self.qmax <= info.max:
                return dtype
        return torch.int64

    def to(self, *args: Any, **kwargs: Any) -> AffineEncoding:
        """The encoding on another device; its numbers stay float32.

        Raises:
            QuantizationError: FXQ451, its numbers are to become integers.
        """
        moved = self.scale.to(*args, **kwargs)
        if not moved.is_floating_point():
            what = f"the numbers of an encoding cannot become {moved.dtype}"
            raise QuantizationError("FXQ451", what, fix="move tensors with quantized_repr()")
        scale = moved.float()
        offset = self.offset.to(*args, **kwargs).float()
        return replace(self, scale=scale, offset=offset)

    def quantize(self, x: Tensor) -> Tensor:
        """Integers of the grid, stored as floats: `[...] -> [...]`."""
        layout = Layout(self.shape, self.block_size)
        y = kernels.quantize(layout.split(_float(x)), self._affine(layout))
        return y.reshape(x.shape)

    def dequantize(self, q: Tensor) -> Tensor:
        """Real values of integers that are stored as floats: `[...] -> [...]`."""
        layout = Layout(self.shape, self.block_size)
        return kernels.dequantize(layout.split(_float(q)), self._affine(layout)).reshape(q.shape)

    def quantize_dequantize(self, x: Tensor) -> Tensor:
        """The nearest values of the grid: `[...] -> [...]`."""
        return self.dequantize(self.quantize(x)).to(x.dtype)

    def same_grid(self, other: object) -> bool:
        """True if both give every integer the same meaning."""
        return (
            isinstance(other, AffineEncoding)
            and (self.qmin, self.qmax, self.block_size)
            == (other.qmin, other.qmax, other.block_size)
            and torch.equal(self.scale, other.scale)
            and torch.equal(self.offset, other.offset)
        )

    def _affine(self, layout: Layout) -> kernels.Affine:
        scale, zero = layout.spread(self.scale), layout.spread(self.zero_point)
        return kernels.affine(scale, zero, self.qmin, self.qmax)


@dataclass(frozen=True, eq=False)
class GroupedBlockEncoding(AffineEncoding):
    """Blocks whose scales are small integers times the scale of their group (LPBQ).

    Args:
        block_grouping: blocks per group along each axis; -1 means all of them.
        decompressed_bw: bits of the integers once the small integers are multiplied in.
        per_block_int_scale: the small integers, of the quantizer's shape.
        per_channel_scale: the scale of each group, 1 along the grouped axes.
    """

    block_grouping: tuple[int, ...] = ()
    decompressed_bw: int = 8
    per_block_int_scale: Tensor | None = None
    per_channel_scale: Tensor | None = None


@dataclass(frozen=True, eq=False)
class FloatEncoding:
    """Values rounded to a narrow floating-point format, divided by `scale` first if there is one.

    Args:
        dtype: the format.
        scale: what the tensor is divided by before the cast, or None.
    """

    dtype: torch.dtype
    scale: Tensor | None = None

    @property
    def bitwidth(self) -> int:
        """Bits of one value."""
        return torch.finfo(self.dtype).bits

    @property
    def granularity(self) -> str:
        """`pertensor`, or `perchannel` if there is one scale a channel."""
        return "pertensor" if self.scale is None else Layout(tuple(self.scale.shape)).granularity

    def to(self, *args: Any, **kwargs: Any) -> FloatEncoding:
        """The encoding on another device."""
        return self if self.scale is None else replace(self, scale=self.scale.to(*args, **kwargs))


Encoding = AffineEncoding | FloatEncoding
_FIELDS = ("scale", "offset", "qmin", "qmax", "symmetry", "block_size")


@dataclass(frozen=True)
class _Grid:
    """The integers of an encoding, as they were given."""

    bitwidth: int | None = None
    signed: bool = False
    qmin: int | None = None
    qmax: int | None = None
    symmetry: bool = False
    block_size: Sequence[int] | None = None

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Grid:
        """Tell `(qmin, qmax, ...)` from `(bitwidth, signed, ...)`: True is no integer here."""
        by_ends = (len(args) > 1 and type(args[1]) is int) or (len(args) == 1 and "qmax" in kwargs)
        names = ("qmin", "qmax") if by_ends else ("bitwidth", "signed")
        places = (*names, "symmetry", "block_size")
        if len(args) > len(places):
            msg = f"an encoding takes scale, offset, {', '.join(places)}; {len(args)} were given"
            raise TypeError(msg)
        return cls(**dict(zip(places, args, strict=False)), **kwargs)

    def ends(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        if self.bitwidth is not None:
            grid = IntegerRange.of_bits(self.bitwidth, signed=self.signed, symmetric=self.symmetry)
            return grid.qmin, grid.qmax
        if self.qmin is None or self.qmax is None:
            msg = "an encoding takes bitwidth, or both qmin and qmax"
            raise TypeError(msg)
        return self.qmin, self.qmax


def _float(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
