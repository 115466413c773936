"""Padding, and moves between channels and space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fxquant.onnx.lowering.context import Call, UnsupportedError, static_sizes
from fxquant.onnx.lowering.emitters import emits

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@emits("pad")
def _pad(c: Call) -> ir.Value:
    rank, pairs = c.spec().rank, [int(p) for p in c.static("pad")]
    begin, end = [0] * rank, [0] * rank
    for i in range(len(pairs) // 2):
        begin[rank - 1 - i], end[rank - 1 - i] = pairs[2 * i], pairs[2 * i + 1]
    mode, value = c.static("mode"), c.static("value")
    return pad_value(c, c.tensor(), begin, end, mode, value=value or 0.0, shape=c.spec().shape)


def pad_value(
    c: Call, x: ir.Value, begin: Sequence[int], end: Sequence[int], mode: str, *,
    value: float = 0.0, shape: Sequence[Any] = (),
) -> ir.Value:  # fmt: skip
    """A Pad; negative widths cut, as in PyTorch."""
    if any(w < 0 for w in (*begin, *end)):
        x = _cropped(c, x, begin, end, shape)
        begin, end = ([max(w, 0) for w in widths] for widths in (begin, end))
    if not any((*begin, *end)):
        return x
    if mode == "circular" and c.opset < 19:
        return _wrapped(c, x, begin, end, shape)
    fill = c.number(value) if mode == "constant" else None
    return c.op("Pad", x, [*begin, *end], fill, mode=_MODES[mode])


def _cropped(
    c: Call, x: ir.Value, begin: Sequence[int], end: Sequence[int], shape: Sequence[Any]
) -> ir.Value:
    for axis, (low, high) in enumerate(zip(begin, end, strict=True)):
        if low < 0 or high < 0:
            size = static_sizes([shape[axis]], "the cut axis")[0]
            x = c.slice(x, axis, max(-low, 0), size + min(high, 0))
    return x


def _wrapped(
    c: Call, x: ir.Value, begin: Sequence[int], end: Sequence[int], shape: Sequence[Any]
) -> ir.Value:
    """Circular padding before opset 19: the far ends are put in front and behind."""
    for axis, (low, high) in enumerate(zip(begin, end, strict=True)):
        size = static_sizes([shape[axis]], "the padded axis")[0] if low or high else 0
        parts = [c.slice(x, axis, size - low)] if low else []
        parts += [x, *([c.slice(x, axis, 0, high)] if high else [])]
        x = c.op("Concat", *parts, axis=axis) if len(parts) > 1 else x
    return x


@emits("pixel_shuffle")
def _pixel_shuffle(c: Call) -> ir.Value:
    factor = int(c.static("upscale_factor"))
    if c.spec().rank != 4:
        return _regrouped(c, factor)
    return c.op("DepthToSpace", c.tensor(), blocksize=factor, mode="CRD")


def _regrouped(c: Call, factor: int) -> ir.Value:
    channels, height, width = static_sizes(c.spec().shape[-3:], "the image")
    split = [channels // factor**2, factor, factor, height, width]
    return _transposed(c, split, (0, 3, 1, 4, 2))


@emits("pixel_unshuffle")
def _pixel_unshuffle(c: Call) -> ir.Value:
    # SpaceToDepth of ONNX puts the block in front of the channel
    factor = int(c.static("downscale_factor"))
    channels, height, width = static_sizes(c.spec().shape[-3:], "the image")
    split = [channels, height // factor, factor, width // factor, factor]
    return _transposed(c, split, (0, 2, 4, 1, 3))


def _transposed(c: Call, split: list[int], order: tuple[int, ...]) -> ir.Value:
    """Channels, height and width split into other dimensions, which change places and rejoin."""
    outer = c.spec().shape[:-3]
    n = len(outer)
    x = c.reshape(c.tensor(), [*outer, *split], c.held("input"))
    x = c.op("Transpose", x, perm=[*range(n), *(n + i for i in order)])
    return c.reshape(x, c.out.shape, c.held("input"))


@emits("channel_shuffle")
def _channel_shuffle(c: Call) -> ir.Value:
    groups = int(c.static("groups"))
    batch, channels, *rest = c.spec().shape
    count = static_sizes([channels], "the channels")[0] // groups
    x = c.reshape(c.tensor(), [batch, groups, count, *rest], c.held("input"))
    x = c.op("Transpose", x, perm=[0, 2, 1, *range(3, 3 + len(rest))])
    return c.reshape(x, c.out.shape, c.held("input"))


@emits("unfold")
def _unfold(c: Call) -> ir.Value:
    """Columns of an image: each axis is gathered by a table of (offset, window)."""
    shape = c.spec().shape
    kernel, dilation, padding, stride = (
        c.ints(k, 2) for k in ("kernel_size", "dilation", "padding", "stride")
    )
    x = c.tensor()
    if c.spec().rank == 3:
        x, shape = c.unsqueeze(x, [0]), (1, *shape)
    sizes = static_sizes(shape[2:], "the image")
    x = pad_value(c, x, [0, 0, *padding], [0, 0, *padding], "constant")
    for i, axis in ((0, 2), (1, 4)):
        reach = dilation[i] * (kernel[i] - 1) + 1
        windows = (sizes[i] + 2 * padding[i] - reach) // stride[i] + 1
        table = np.arange(kernel[i])[:, None] * dilation[i] + np.arange(windows) * stride[i]
        x = c.op("Gather", x, c.builder.constant(table.astype(np.int64)), axis=axis)
    # [N, C, kh, oh, kw, ow] -> [N, C, kh, kw, oh, ow]
    x = c.op("Transpose", x, perm=[0, 1, 2, 4, 3, 5])
    return c.reshape(x, c.out.shape, c.held("input"))


@emits("fold")
def _fold(c: Call) -> ir.Value:
    if c.opset < 18:
        msg = "Col2Im came with opset 18"
        raise UnsupportedError(msg)
    x = c.tensor()
    if single := c.spec().rank == 2:
        x = c.unsqueeze(x, [0])
    y = c.op(
        "Col2Im", x, c.ints("output_size", 2), c.ints("kernel_size", 2),
        dilations=c.ints("dilation", 2), pads=c.ints("padding", 2) * 2,
        strides=c.ints("stride", 2),
    )  # fmt: skip
    return c.squeeze(y, [0]) if single else y


@emits("tensor_unfold")
def _tensor_unfold(c: Call) -> ir.Value:
    axis, rank = c.axis("dimension"), c.spec().rank
    size, step = int(c.static("size")), int(c.static("step"))
    length = static_sizes([c.spec().shape[axis]], "the unfolded axis")[0]
    windows = (length - size) // step + 1
    table = np.arange(windows)[:, None] * step + np.arange(size)
    x = c.op("Gather", c.tensor(), c.builder.constant(table.astype(np.int64)), axis=axis)
    order = [*range(axis + 1), *range(axis + 2, rank + 1), axis + 1]
    return c.op("Transpose", x, perm=order)


def along_axis(c: Call, x: ir.Value, axis: int, rank: int, matrix: Tensor) -> ir.Value:
    """One axis of `x` times a matrix `[given, made]`."""
    last = rank - 1
    if axis == last:
        return c.op("MatMul", x, c.builder.constant(matrix))
    if axis == last - 1:
        return c.op("MatMul", c.builder.constant(matrix.T), x)
    order = [i for i in range(rank) if i != axis] + [axis]
    back = [order.index(i) for i in range(rank)]
    y = c.op("MatMul", c.op("Transpose", x, perm=order), c.builder.constant(matrix))
    return c.op("Transpose", y, perm=back)
