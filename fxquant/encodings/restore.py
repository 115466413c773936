"""From an entry to a quantizer that has its grid."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fxquant.encodings.collect import Place, axis_of
from fxquant.encodings.entry import FLOATS, Array, Entry
from fxquant.errors import QuantizationError, ShapeMismatchError
from fxquant.quantization import AffineEncoding, FloatEncoding
from fxquant.quantization.affine import GroupedBlockQuantizeDequantize, QuantizeDequantize
from fxquant.quantization.affine.affine_quantizer import AffineQuantizer
from fxquant.quantization.float import FloatQuantizeDequantize
from fxquant.quantization.range_to_qparams import IntegerRange
from fxquant.quantization.ranges import product_for, range_of

if TYPE_CHECKING:
    from fxquant.quantization import QuantizerBase

# some numbers are no quotient of a range: the next one is taken, see `ranges`
_ULP = 2.0**-22


def restored(place: Place, entry: Entry) -> QuantizerBase | None:
    """A quantizer with the grid of an entry, like the one in its place; None for full precision.

    Raises:
        ShapeMismatchError: FXQ634, it has another number of ranges, or along another axis.
        QuantizationError: FXQ635, the quantizer cannot have this grid.
    """
    if entry.float_type == "float32":
        return None
    quantizer = place.quantizer
    if quantizer is None:
        msg = "a place without a quantizer takes no entry"
        raise ValueError(msg)
    _check_axis(place, entry, quantizer)
    if entry.float_type:
        return _float(quantizer, entry)
    return _affine(quantizer, entry)


def _float(quantizer: QuantizerBase, entry: Entry) -> QuantizerBase:
    dtype = FLOATS[entry.float_type]
    made = quantizer
    if not isinstance(quantizer, FloatQuantizeDequantize) or quantizer.dtype is not dtype:
        made = FloatQuantizeDequantize(dtype=dtype, shape=_shape(quantizer))
        made.where = quantizer.where
        made = made.to(_device(quantizer))
    else:
        made = copy.deepcopy(quantizer)
    if entry.scale is not None and made.scaled:
        scale = _tensor(_fitted(entry.name, entry.scale, made.shape), made)
        # largest values of all formats are an odd number times a power of two
        largest = torch.finfo(dtype).max
        factor = 2.0 ** max(0, int(np.log2(largest)) - 3)
        high = product_for(scale, int(largest / factor)) * factor
        made.set_range(-high, high)
    return made


def _affine(quantizer: QuantizerBase, entry: Entry) -> QuantizerBase:
    if isinstance(quantizer, AffineQuantizer):
        made: AffineQuantizer = copy.deepcopy(quantizer)
    else:
        made = QuantizeDequantize(_shape(quantizer)).to(_device(quantizer))
        made.where = quantizer.where
    grid = _grid(entry, made.grid if isinstance(quantizer, AffineQuantizer) else None)
    scale = _tensor(_scales(entry, made), made)
    if entry.steps is None:
        raise _impossible(entry, "the file has no zero point")
    zero = _tensor(_fitted(entry.name, entry.steps, made.shape), made) + grid.qmin
    made._set_grid(grid)
    made.set_range(*range_of(grid, scale, zero))
    _check(made, scale, zero, entry)
    return made


def _grid(entry: Entry, current: IntegerRange | None) -> IntegerRange:
    """The integers; what the file leaves open stays as it is."""
    steps = np.zeros(1, np.int64) if entry.steps is None else entry.steps.reshape(-1)
    half = 2 ** (entry.bits - 1)
    symmetric = entry.symmetric
    if symmetric is None:
        symmetric = current.symmetric if current is not None else False
    if entry.limits is not None:
        grid = IntegerRange(*entry.limits, symmetric)
    elif symmetric and bool((steps == half - 1).all()):
        grid = IntegerRange(1 - half, half - 1, True)
    else:
        signed = entry.signed
        if signed is None:
            signed = current.signed if current is not None else symmetric
        grid = IntegerRange.of_bits(entry.bits, signed=signed, symmetric=symmetric)
        if current is not None and _narrowed(grid, current):
            grid = current
    if grid.symmetric and not bool((steps == grid.middle - grid.qmin).all()):
        grid = IntegerRange(grid.qmin, grid.qmax, False)  # some tools call this symmetric as well
    return grid


def _narrowed(grid: IntegerRange, current: IntegerRange) -> bool:
    """Whether the quantizer leaves out integers of the same type, and so may go on doing it."""
    same = (grid.bits, grid.signed, grid.symmetric) == (
        current.bits,
        current.signed,
        current.symmetric,
    )
    return same and not current.symmetric and current.qmin == grid.qmin


def _scales(entry: Entry, made: AffineQuantizer) -> Array:
    if entry.factors is None:
        if entry.scale is None:
            raise _impossible(entry, "the file has no scale")
        return _fitted(entry.name, entry.scale, made.shape)
    if not isinstance(made, GroupedBlockQuantizeDequantize) or entry.scale is None:
        raise _impossible(entry, "scales of blocks are small integers times those of groups")
    if entry.wide_bits not in (None, made.decompressed_bw):
        raise _impossible(entry, f"it decompresses to {entry.wide_bits} bits")
    groups = tuple(
        1 if size == -1 else count // size
        for count, size in zip(made.shape, made.block_grouping, strict=True)
    )
    shaped = Entry(
        entry.name, entry.bits, _fitted(entry.name, entry.scale, groups),
        factors=_fitted(entry.name, entry.factors, made.shape),
    )  # fmt: skip
    found = shaped.block_scale
    return entry.factors if found is None else found


def _check(made: AffineQuantizer, scale: Tensor, zero: Tensor, entry: Entry) -> None:
    """The quantizer says what the file says."""
    encoding = made.get_encodings()
    if encoding is None or not bool(((encoding.scale - scale).abs() <= scale * _ULP).all()):
        raise _impossible(entry, f"a {type(made).__name__} cannot have these scales")
    if not torch.equal(encoding.zero_point, zero):
        raise _impossible(entry, f"{made} cannot have these zero points")


def _check_axis(place: Place, entry: Entry, quantizer: QuantizerBase) -> None:
    """Where the file names an axis, it is the quantizer's: on square weights sizes do not tell."""
    sizes: tuple[int, ...] | None = getattr(quantizer, "block_size", None)
    if entry.block is not None and sizes is None:
        raise _impossible(entry, f"the quantizer has no blocks, the file blocks of {entry.block}")
    own, block = axis_of(_shape(quantizer), sizes, place.shape)
    if entry.block is not None and place.is_param and block != entry.block:
        what = f"{entry.name} has blocks of {entry.block} in the file, the quantizer of {block}"
        raise ShapeMismatchError("FXQ634", what, fix="place blocks of the same size first")
    if entry.axis is None or own is None or place.shape is None:
        return
    rank = len(place.shape)
    if own % rank != entry.axis % rank:
        what = f"{entry.name} has its scales along axis {entry.axis}, the quantizer along {own}"
        raise ShapeMismatchError("FXQ634", what, fix="quantize the tensor along the same axis")


def _fitted(name: str, numbers: Array, shape: tuple[int, ...]) -> Array:
    if numbers.size != int(np.prod(shape, dtype=np.int64)):
        raise ShapeMismatchError(
            "FXQ634",
            f"{name} has {numbers.size} range(s) in the file, the quantizer has shape {shape}",
            fix="use encodings of the same model with the same granularity",
        )
    return numbers.reshape(shape)


def _impossible(entry: Entry, why: str) -> QuantizationError:
    what = f"the quantizer of {entry.name} cannot take its {entry.kind} encoding: {why}"
    return QuantizationError("FXQ635", what, fix="place a quantizer of the same kind first")


def _shape(quantizer: QuantizerBase) -> tuple[int, ...]:
    shape: tuple[int, ...] = getattr(quantizer, "shape", ())
    return shape


def _device(quantizer: QuantizerBase) -> torch.device:
    return next((p.device for p in quantizer.parameters()), torch.device("cpu"))


def _tensor(numbers: Array, made: QuantizerBase) -> Tensor:
    return torch.tensor(np.asarray(numbers, np.float32), device=_device(made))


def same_encoding(a: QuantizerBase, b: QuantizerBase) -> bool:
    """True if two quantizers give every value the same meaning."""
    first, second = a.get_encodings(), b.get_encodings()
    if isinstance(first, AffineEncoding):
        return first.same_grid(second)
    if not isinstance(first, FloatEncoding) or not isinstance(second, FloatEncoding):
        return first is second
    scales = [e.scale for e in (first, second) if e.scale is not None]
    same = not scales or (len(scales) == 2 and torch.equal(*scales))
    return first.dtype is second.dtype and same
