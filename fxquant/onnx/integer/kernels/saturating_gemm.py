"""Products of unsigned and signed bytes as x86 CPUs without VNNI add them.

`VPMADDUBSW` multiplies bytes and adds neighbouring products in 16 bits, which saturate; all else is
exact. So a sum over K is that of pairs: `Σ clip(a[2i]·b[2i] + a[2i+1]·b[2i+1], -32768, 32767)`, on
the raw bytes, before zero points; an odd K is filled up with a zero. Convolutions count K by the
place in the kernel first and by the channel of the group second, and padding holds the zero point.

What is computed here is the difference to the exact sum. Few pairs can saturate, so it costs little
beside the sum itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxquant.onnx.integer.kernels.arithmetic import Array

LOW, HIGH = -(2**15), 2**15 - 1


def lost(a: Array, b: Array) -> Array | float:
    """What saturation adds to the sums of a matrix product: saturated minus exact.

    Args:
        a: [..., M, K] raw bytes.
        b: [..., K, N] raw bytes.

    Returns:
        [..., M, N] in float64; 0 where the types are not those that saturate.
    """
    if a.dtype != np.uint8 or b.dtype != np.int8:
        return 0.0
    if b.ndim == 2:
        found = _lost(a.reshape(-1, a.shape[-1]), b)
        return found.reshape(*a.shape[:-1], b.shape[1])
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b))
    result = np.zeros((*a.shape[:-1], b.shape[-1]))
    for place in np.ndindex(*batch):
        result[place] = _lost(a[place], b[place])
    return result


def _lost(a: Array, b: Array) -> Array:
    """The same for [M, K] and [K, N]."""
    result = np.zeros((len(a), b.shape[1]))
    if a.shape[1] < 2 or not a.size:
        return result
    first, second = halves(a, 1), halves(b, 0)
    largest = [x.max(axis=0).astype(np.int32)[:, None] for x in first]
    places, columns = np.nonzero(can_saturate(second, largest))
    for column in np.unique(columns):
        chosen = places[columns == column]
        sums = sum(
            x[:, chosen].astype(np.int32) * w[chosen, column].astype(np.int32)
            for x, w in zip(first, second, strict=True)
        )
        result[:, column] = (np.clip(sums, LOW, HIGH) - sums).sum(axis=1)
    return result


def halves(x: Array, axis: int) -> tuple[Array, Array]:
    """The first and the second of each pair along an axis of a matrix; an odd one gets a zero."""
    if x.shape[axis] % 2:
        ends = [(0, 1) if i == axis else (0, 0) for i in range(x.ndim)]
        x = np.pad(x, ends)
    return (x[:, 0::2], x[:, 1::2]) if axis else (x[0::2], x[1::2])


def can_saturate(
    weights: tuple[Array, Array], largest: Sequence[Array | int] = (255, 255)
) -> Array:
    """Pairs of weights whose sum leaves 16 bits for some activations from zero to the `largest`."""
    upper, lower = bounds(weights, largest)
    return np.asarray((upper > HIGH) | (lower < LOW))


def bounds(
    weights: tuple[Array, Array], largest: Sequence[Array | int] = (255, 255)
) -> tuple[Array, Array]:
    """Largest and smallest sum of each pair, for activations from zero to the `largest`."""
    wide = [w.astype(np.int32) for w in weights]
    upper = sum(x * np.maximum(w, 0) for x, w in zip(largest, wide, strict=True))
    lower = sum(x * np.minimum(w, 0) for x, w in zip(largest, wide, strict=True))
    return np.asarray(upper), np.asarray(lower)


def lost_in_convolution(
    x: Array, w: Array, zero: int, *, pads: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int], group: int,
) -> Array | float:  # fmt: skip
    """What saturation adds to the sums of a convolution.

    Args:
        x: [N, C, ...] raw bytes.
        w: [M, C/group, ...] raw bytes.
        zero: zero point of `x`, with which padding is filled.
        pads: begins, then ends.
        strides: one for each spatial axis.
        dilations: one for each spatial axis.
        group: groups of channels.

    Returns:
        [N, M, ...] in float64, or 0 where nothing saturates; a depthwise kernel is exact.
    """
    n = w.ndim - 2
    depthwise = group == x.shape[1] == w.shape[0] and group > 1
    if x.dtype != np.uint8 or w.dtype != np.int8 or depthwise:
        return 0.0
    rows = weight_rows(w)
    if not can_saturate(halves(rows, 1)).any():
        return 0.0
    windows = _windows(x, w, zero, pads, strides, dilations)
    sizes, width, out = windows.shape[2 : 2 + n], w.shape[1], len(w) // group
    result = np.zeros((len(x), len(w), *sizes))
    for i in range(len(x)):  # one image at a time: all windows of all images are many
        for g in range(group):
            part = windows[i, g * width : (g + 1) * width]
            order = [*range(1, 1 + n), *range(1 + n, 1 + 2 * n), 0]
            matrix = part.transpose(order).reshape(int(np.prod(sizes)), -1)
            own = slice(g * out, (g + 1) * out)
            result[i, own] = _lost(matrix, rows[own].T).T.reshape(out, *sizes)
    return result


def lost_in_columns(
    x: Array, w: Array, zero: int, *, pads: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int], group: int,
) -> Array | float:  # fmt: skip
    """The same for ConvInteger, where weights come first: a product of weights and windows.

    So it saturates where weights are unsigned and `x` is signed, depthwise or not, and counts K by
    the channel first and by the place in the kernel second.
    """
    if w.dtype != np.uint8 or x.dtype != np.int8:
        return 0.0
    n, width, out = w.ndim - 2, w.shape[1], len(w) // group
    windows = _windows(x, w, zero, pads, strides, dilations)
    sizes = windows.shape[2 : 2 + n]
    result = np.zeros((len(x), len(w), *sizes))
    for i in range(len(x)):
        for g in range(group):
            part = windows[i, g * width : (g + 1) * width]
            order = [0, *range(1 + n, 1 + 2 * n), *range(1, 1 + n)]
            matrix = part.transpose(order).reshape(-1, int(np.prod(sizes)))
            own = slice(g * out, (g + 1) * out)
            result[i, own] = _lost(w[own].reshape(out, -1), matrix).reshape(out, *sizes)
    return result


def _windows(
    x: Array, w: Array, zero: int, pads: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int],
) -> Array:  # fmt: skip
    """What each place of a convolution reads: [N, C, sizes of the result ..., kernel ...]."""
    n = w.ndim - 2
    ends = [(0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)]
    padded = np.pad(x, ends, constant_values=zero)
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)],
        axis=tuple(range(2, 2 + n)),
    )  # fmt: skip
    chosen = [slice(None, None, s) for s in strides] + [slice(None, None, d) for d in dilations]
    return np.asarray(windows[(slice(None), slice(None), *chosen)])


def weight_rows(w: Array) -> Array:
    """[M, C/group, ...] -> [M, K], K in the order in which a convolution adds."""
    return np.moveaxis(w, 1, -1).reshape(len(w), -1)
