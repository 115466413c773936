"""A quantizer as ONNX says it: scale, zero point, integer type, axis, block size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.errors import ExportError, UncalibratedError
from fxquant.quantization import AffineEncoding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fxquant.quantization import QuantizerBase

Type = ir.DataType
# (bits, signed) -> (type, opset that has it in QuantizeLinear); int32 is for biases only: no
# QuantizeLinear makes it, and no kernel reads such weights
_TYPES = {
    (4, True): (Type.INT4, 21), (4, False): (Type.UINT4, 21),
    (8, True): (Type.INT8, 10), (8, False): (Type.UINT8, 10),
    (16, True): (Type.INT16, 21), (16, False): (Type.UINT16, 21),
}  # fmt: skip

OPSET_OF_BLOCKS = 21


def are_columns(shape: Sequence[int], axis: int) -> bool:
    """Whether scales of blocks, of this shape and along this axis, are those of whole columns.

    A weight of several matrices `[..., K, N]` has them `[..., 1, N]`, along the axis of `K`.
    """
    rank = len(shape)
    return rank > 1 and axis % rank == rank - 2 and shape[-2] == 1


@dataclass(frozen=True)
class QuantParams:
    """Scale and zero point of QuantizeLinear and DequantizeLinear.

    Attributes:
        scale: float32, `()` per tensor, `[C]` per channel, the tensor's rank per block.
        zero_point: of `dtype`, shaped like `scale`.
        dtype: integer type.
        axis: channel or block axis, None per tensor.
        block: elements per block, None unless per block.
        low: smallest integer that may occur.
        high: largest integer that may occur.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    dtype: ir.DataType
    axis: int | None
    block: int | None
    low: int
    high: int

    @property
    def by_columns(self) -> bool:
        """Whether a block is a whole column of a matrix, of which there are several."""
        if self.block is None or self.axis is None:
            return False
        return are_columns(self.scale.shape, self.axis)

    @property
    def side_by_side(self) -> QuantParams:
        """The grid, per channel, of matrices laid side by side."""
        scale, zero = self.scale.reshape(-1), self.zero_point.reshape(-1)
        return replace(self, scale=scale, zero_point=zero, axis=1, block=None)

    @property
    def clipped(self) -> bool:
        """Whether the type holds integers that the grid does not."""
        return (self.low, self.high) != type_range(self.dtype)

    @property
    def bounds(self) -> tuple[float, float]:
        """Real values of the smallest and largest integer of a per-tensor grid."""
        zero, scale = int(self.zero_point), np.float32(self.scale)
        return float((self.low - zero) * scale), float((self.high - zero) * scale)

    def permuted(self, order: tuple[int, ...]) -> QuantParams:
        """The grid of the transposed tensor."""
        if self.axis is None:
            return self
        axis = order.index(self.axis)
        if self.block is None:
            return replace(self, axis=axis)
        scale, zero = self.scale.transpose(order), self.zero_point.transpose(order)
        return replace(
            self,
            scale=np.ascontiguousarray(scale),
            zero_point=np.ascontiguousarray(zero),
            axis=axis,
        )

    def rows(self, order: NDArray[np.int64]) -> QuantParams:
        """The grid of the tensor whose rows are taken in another order."""
        if self.axis != 0 or self.block is not None:
            return self
        return replace(self, scale=self.scale[order], zero_point=self.zero_point[order])


def type_range(dtype: ir.DataType) -> tuple[int, int]:
    """Smallest and largest integer of a type."""
    bits = int(dtype.bitwidth)
    signed = not dtype.name.startswith("U")
    low = -(2 ** (bits - 1)) if signed else 0
    return low, low + 2**bits - 1


def encoding_of(quantizer: QuantizerBase) -> AffineEncoding:
    """The affine encoding of a quantizer.

    Raises:
        UncalibratedError: FXQ503, it has no range.
        ExportError: FXQ504, it is no integer quantizer.
    """
    where = quantizer.where or "a quantizer"
    if not quantizer.is_initialized():
        fix = "run sim.compute_encodings(...) with data before exporting"
        raise UncalibratedError("FXQ503", f"{where} has no range", at=where, fix=fix)
    encoding = quantizer.get_encodings()
    if not isinstance(encoding, AffineEncoding):
        name = type(quantizer).__name__
        raise ExportError("FXQ504", f"{name} has no integer form in ONNX", at=where,
                          fix="use an affine quantizer here")  # fmt: skip
    return encoding


def integer_grid(
    quantizer: QuantizerBase, shape: tuple[Any, ...], opset: int, *, least_bits: int = 4,
    matrix: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> QuantParams:  # fmt: skip
    """The grid of a tensor of this shape.

    Args:
        quantizer: an initialized affine quantizer.
        shape: shape of the tensor it quantizes; dynamic sizes may be anything.
        opset: decides which integer types exist.
        least_bits: narrowest type that may be chosen.
        matrix: makes of a tensor of this rank the matrix `[..., in, out]` as which it is stored.

    Raises:
        ExportError: FXQ504 or FXQ505, ONNX cannot say it in this opset.
    """
    encoding = encoding_of(quantizer)
    dtype = _storage(encoding, opset, quantizer.where, least_bits)
    scale = encoding.scale.detach().cpu().numpy().astype(np.float32)
    zero = encoding.zero_point.detach().cpu().numpy()
    axis, block = None, None
    if encoding.block_size is not None:
        axis, block, scale, zero = _blocks(encoding, shape, scale, zero, quantizer.where)
        if matrix is not None:  # blocks cut inputs, which are the last axis but one
            scale, zero = matrix(scale), matrix(zero)
            axis, columns = scale.ndim - 2, scale.size // scale.shape[-2]
            firsts = [x.take([0], axis) for x in (scale, zero)]
            if all((x == first).all() for x, first in zip((scale, zero), firsts, strict=True)):
                scale, zero = firsts  # a block is a column, which integer kernels take
            block = math.prod(shape) // columns // scale.shape[axis]
    elif scale.size > 1:
        if matrix is not None:
            scale, zero = matrix(scale), matrix(zero)
            shape = shape[: scale.ndim]
        axis = _channel_axis(scale.shape, len(shape), quantizer.where)
        scale, zero = scale.reshape(-1), zero.reshape(-1)
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    found = QuantParams(
        scale, zero.astype(np.int64).astype(dtype.numpy()), dtype, axis, block,
        encoding.qmin, encoding.qmax,
    )  # fmt: skip
    if block is not None and opset < OPSET_OF_BLOCKS and not found.by_columns:
        what = f"blocks of {block} elements have no form in opset {opset}"
        raise ExportError("FXQ505", what, at=quantizer.where, fix="export with opset 21")
    return found


def stored_integers(quantizer: QuantizerBase, tensor: Tensor, grid: QuantParams) -> NDArray[Any]:
    """The integers of a constant, as the quantizer itself computes them."""
    integers = encoding_of(quantizer).quantize(tensor.detach().float()).cpu().numpy()
    wide = np.int32 if grid.dtype in (Type.INT4, Type.UINT4) else grid.dtype.numpy()
    found: NDArray[Any] = integers.astype(wide).astype(grid.dtype.numpy(), copy=False)
    return found


def _storage(
    encoding: AffineEncoding, opset: int, where: str | None, least_bits: int
) -> ir.DataType:
    for bits in (4, 8, 16):
        dtype, since = _TYPES.get((bits, encoding.signed), (None, 0))
        if dtype is None or opset < since or bits < least_bits:
            continue
        low, high = type_range(dtype)
        if low <= encoding.qmin and encoding.qmax <= high:
            return dtype
    what = f"integers {encoding.qmin} to {encoding.qmax} have no type in opset {opset}"
    wide = encoding.bitwidth > 16
    fix = "use 16 bits or less" if wide else "export with opset 21 or use 8 bits"
    raise ExportError("FXQ505", what, at=where, fix=fix)


def _channel_axis(shape: tuple[int, ...], rank: int, where: str | None) -> int:
    wide = [i for i, n in enumerate(shape) if n > 1]
    if len(wide) != 1:
        raise ExportError("FXQ504", f"a scale of shape {shape} varies along several axes", at=where,
                          fix="use one scale per tensor, per channel or per block")  # fmt: skip
    # laid against the tensor from the right, as in broadcasting
    return wide[0] + rank - len(shape)


def _blocks(
    encoding: AffineEncoding,
    shape: tuple[int, ...],
    scale: NDArray[Any],
    zero: NDArray[Any],
    where: str | None,
) -> tuple[int, int, NDArray[Any], NDArray[Any]]:
    """Scales per block: ONNX blocks one axis, so scales of the others are repeated."""
    sizes = shape[len(shape) - scale.ndim :]
    widths = [math.ceil(n / count) for n, count in zip(sizes, scale.shape, strict=True)]
    blocked = [i for i, n in enumerate(scale.shape) if n > 1 and widths[i] > 1]
    if len(blocked) > 1 or scale.ndim != len(shape):
        raise ExportError("FXQ504", f"blocks {encoding.block_size} cut several axes", at=where,
                          fix="cut the input channels into blocks only")  # fmt: skip
    axis = blocked[0] if blocked else max(range(len(sizes)), key=lambda i: widths[i])
    for i, width in enumerate(widths):
        if i != axis:
            scale, zero = scale.repeat(width, i), zero.repeat(width, i)
    return axis, widths[axis], scale, zero
