"""Float32 arithmetic of the kernels, step by step: every rounding is where the kernel has it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
F32 = np.float32


def quantize(x: Array, scale: Array, zero: Array, dtype: np.dtype[Any]) -> Array:
    """`saturate(round(x / s) + z)` in float32, ties to even; all operands broadcast."""
    return saturate(np.rint(x / scale), zero, dtype)


def dequantize(q: Array, scale: Array, zero: Array) -> Array:
    """`(q - z) · s` in float32."""
    return ((q.astype(np.int32) - zero.astype(np.int32)).astype(F32) * scale).astype(F32)


def saturate(rounded: Array, zero: Array, dtype: np.dtype[Any]) -> Array:
    """Whole numbers in float32 moved by the zero point and cut off at the type's ends."""
    info = np.iinfo(dtype)
    shift = zero.astype(F32)
    low, high = F32(info.min) - shift, F32(info.max) - shift
    with np.errstate(invalid="ignore"):
        return (np.clip(rounded, low, high) + shift).astype(dtype)


def requantize(sums: Array, scale: Array, zero: Array, dtype: np.dtype[Any]) -> Array:
    """`saturate(round(float(sum) · m) + z)`: the end of every integer product.

    Args:
        sums: int32.
        scale: the float32 multiplier, broadcast against `sums`.
        zero: zero point of the result.
        dtype: its type.
    """
    return saturate(np.rint(sums.astype(F32) * scale), zero, dtype)


def round_with_zero(x: Array, dtype: np.dtype[Any]) -> Array:
    """Round float32 values that the zero point was added to already."""
    info = np.iinfo(dtype)
    return np.asarray(np.rint(np.clip(x, F32(info.min), F32(info.max))), dtype)


def fma(a: Array, b: Array, c: Array) -> Array:
    """`a·b + c` with one rounding, in float32.

    The product is exact in float64. Rounding the sum there first and to float32 second goes wrong
    only where the first result lies half-way between two float32 numbers; there the part that the
    sum lost decides (Knuth's two-sum).
    """
    product = np.asarray(a.astype(np.float64) * b.astype(np.float64))
    addend = np.asarray(c, np.float64)
    total = np.atleast_1d(product + addend)
    half = (total.view(np.int64) & _BELOW_FLOAT32) == _HALF_WAY
    if half.any():
        part = total - product
        lost = (product - (total - part)) + (addend - part)
        away = np.where(lost > 0, np.inf, -np.inf)
        total = np.where(half & (lost != 0), np.nextafter(total, away), total)
    return np.asarray(total, F32).reshape(np.broadcast_shapes(product.shape, addend.shape))


_BELOW_FLOAT32 = np.int64((1 << 29) - 1)  # bits of a float64 that a float32 does not have
_HALF_WAY = np.int64(1 << 28)


def wrapped(sums: Array) -> Array:
    """Exact sums in float64 as int32, with the wrap-around of 32-bit registers."""
    return sums.astype(np.int64).astype(np.int32)


def byte_values(dtype: np.dtype[Any]) -> Array:
    """All 256 values of a byte type in the order of their unsigned pattern."""
    return np.arange(256, dtype=np.uint8).view(dtype)


def look_up(table: Array, x: Array) -> Array:
    """`table[x]` for bytes; the table is ordered by unsigned pattern."""
    return table[x.view(np.uint8)] if x.flags.c_contiguous else table[x.copy().view(np.uint8)]
