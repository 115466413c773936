"""In what order float32 kernels of a CPU add, and whether they multiply and add at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fxquant.onnx.integer.kernels.arithmetic import F32, Array, fma


@dataclass(frozen=True)
class Lanes:
    """The registers for which onnxruntime has kernels on a kind of CPU.

    Attributes:
        width: float32 numbers that the sums of a softmax add at once.
        fused: whether `a·b + c` rounds once; every x86 CPU since 2013 does so.
    """

    width: int
    fused: bool = True

    @property
    def block(self) -> int:
        """Channels that lie side by side in the layout that onnxruntime takes for float images."""
        return max(self.width, 2 * _NARROW)

    def multiply_add(self, a: Array, b: Array, c: Array) -> Array:
        """`a·b + c` in float32; all operands broadcast."""
        if self.fused:
            return fma(a, b, c)
        return np.asarray((a * b).astype(F32) + c, F32)

    def sums(self, x: Array) -> Array:
        """Sums of the rows of a matrix as softmax adds them: [N, K] -> [N, 1]."""
        if self.width == _NARROW:
            whole = x.shape[1] // _NARROW * _NARROW
            return in_turn(folded(in_lanes(x[:, :whole], _NARROW)), x[:, whole:])
        lanes = in_lanes(x, self.width)
        if self.width == _WIDE:
            lanes = (lanes[:, : _WIDE // 2] + lanes[:, _WIDE // 2 :]).astype(F32)
        while lanes.shape[1] > 1:  # neighbours
            lanes = (lanes[:, 0::2] + lanes[:, 1::2]).astype(F32)
        return np.asarray(lanes)


_NARROW, _WIDE = 4, 16
SSE = Lanes(_NARROW, fused=False)
AVX2 = Lanes(8)
AVX512 = Lanes(_WIDE)


def in_lanes(x: Array, width: int) -> Array:
    """Every `width`-th column added up, one after the other: [N, K] -> [N, width].

    Columns that are missing at the end are zero.
    """
    count = -(-x.shape[1] // width)
    if not count:
        return np.zeros((len(x), width), F32)
    padded = np.zeros((len(x), count * width), F32)
    padded[:, : x.shape[1]] = x
    return one_after_the_other(padded.reshape(len(x), count, width), 1)


def one_after_the_other(x: Array, axis: int) -> Array:
    """Sums along an axis in its order; numpy's own sums go in pairs."""
    return np.asarray(np.add.accumulate(x, axis=axis, dtype=F32).take(-1, axis=axis))


def folded(lanes: Array) -> Array:
    """The sum of lanes, one half upon the other: [N, 2^k] -> [N, 1]."""
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = (lanes[:, :half] + lanes[:, half:]).astype(F32)
    return lanes


def in_turn(total: Array, columns: Array) -> Array:
    """Columns added to a sum in their order: [N, 1], [N, K] -> [N, 1]."""
    return one_after_the_other(np.concatenate([total, columns], axis=1), 1)[:, None]
