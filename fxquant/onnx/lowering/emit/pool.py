"""Pools: windows, adaptive and global ones, with indices where they are asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fxquant.onnx.lowering.context import Call, UnsupportedError, static_sizes
from fxquant.onnx.lowering.emit.spatial import along_axis, pad_value
from fxquant.onnx.lowering.emitters import emits

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir


def _axes(name: str) -> int:
    """Number of spatial axes of a row such as `max_pool2d`."""
    return int(name[-2])


class _Window:
    """A window pool: its sizes, and how far the last window reaches beyond the input."""

    def __init__(self, c: Call, n: int) -> None:
        self.kernel = c.ints("kernel_size", n)
        stride = c.arguments.get("stride")
        self.stride = self.kernel if stride in (None, ()) else c.ints("stride", n)
        self.padding = c.ints("padding", n) if "padding" in c.arguments else [0] * n
        self.dilation = c.ints("dilation", n) if "dilation" in c.arguments else [1] * n
        out = c.out[0] if isinstance(c.out, (tuple, list)) else c.out
        sizes = zip(c.spec().shape[-n:], out.shape[-n:], strict=True)
        self.beyond = [self._reach(i, given, made) for i, (given, made) in enumerate(sizes)]

    def _reach(self, i: int, given: Any, made: Any) -> int:
        given, made = static_sizes([given, made], "the pooled axis")
        reach = (made - 1) * self.stride[i] + self.dilation[i] * (self.kernel[i] - 1) + 1
        beyond: int = reach - given - self.padding[i]
        return beyond

    @property
    def end(self) -> list[int]:
        """Padding behind the input, so that no rounding up is left to the runtime."""
        return [max(p, b) for p, b in zip(self.padding, self.beyond, strict=True)]

    @property
    def overhangs(self) -> bool:
        """Whether a window reaches beyond the padded input."""
        return any(b > p for p, b in zip(self.padding, self.beyond, strict=True))


def _image(c: Call, n: int) -> tuple[ir.Value, bool]:
    """The input with batch and channels, and whether it had a batch."""
    x = c.tensor()
    return (x, True) if c.spec().rank == n + 2 else (c.unsqueeze(x, [0]), False)


@emits("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(c: Call) -> Any:
    n = c.spec().rank - (1 if _is_single(c) else 2)
    window, (x, batched) = _Window(c, n), _image(c, n)
    wants_indices = isinstance(c.out, (tuple, list))
    values = c.builder.ops(
        "MaxPool", 2 if wants_indices else 1, x, kernel_shape=window.kernel,
        strides=window.stride, pads=[*window.padding, *window.end],
        dilations=window.dilation if any(d != 1 for d in window.dilation) else None,
    )  # fmt: skip
    c.builder.main(values[0])
    if not wants_indices:
        return _unbatched(c, values[0], batched)
    # ONNX counts over the whole tensor, PyTorch over one channel
    plane = math.prod(static_sizes(c.spec().shape[-n:], "the image"))
    indices = c.op("Mod", values[1], c.builder.number(plane, torch.int64))
    return _unbatched(c, values[0], batched), _unbatched(c, indices, batched)


def _is_single(c: Call) -> bool:
    """Whether the input is one image without a batch axis."""
    name = type(c.module).__name__ if c.module is not None else str(c.node.target)
    digits = [int(d) for d in name if d in "123"]
    if not digits:
        digits = [int(d) for d in str(getattr(c.node.target, "__name__", "")) if d in "123"]
    return bool(digits) and c.spec().rank == digits[-1] + 1


def _spatial(c: Call) -> int:
    return c.spec().rank - (1 if _is_single(c) else 2)


def _unbatched(c: Call, x: ir.Value, batched: bool) -> ir.Value:
    return x if batched else c.squeeze(x, [0])


@emits("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(c: Call) -> ir.Value:
    n = _spatial(c)
    window, (x, batched) = _Window(c, n), _image(c, n)
    include = bool(c.static("count_include_pad"))
    begin, end = window.padding, window.end
    divisor = c.static("divisor_override") if "divisor_override" in c.arguments else None
    if divisor or (window.overhangs and include and any(window.padding)):
        # the padding counts as zeros, what lies beyond it does not count
        x = pad_value(c, x, [0, 0, *begin], [0, 0, *window.padding], "constant")
        end = [e - p for e, p in zip(end, window.padding, strict=True)]
        begin, include = [0] * n, bool(divisor)
    elif window.overhangs:
        include = False
    y = c.op(
        "AveragePool", x, kernel_shape=window.kernel, strides=window.stride,
        pads=[*begin, *end], count_include_pad=int(include),
    )  # fmt: skip
    c.builder.main(y)
    if divisor:
        y = c.op("Mul", y, c.number(math.prod(window.kernel) / divisor))
    return _unbatched(c, y, batched)


@emits("lp_pool1d", "lp_pool2d")
def _lp_pool(c: Call) -> ir.Value:
    n = _spatial(c)
    window, (x, batched) = _Window(c, n), _image(c, n)
    order = float(c.static("norm_type"))
    powers = c.op("Pow", x, c.number(order))
    end = [max(b, 0) for b in window.beyond]
    mean = c.op(
        "AveragePool", powers, kernel_shape=window.kernel, strides=window.stride,
        pads=[0] * n + end, count_include_pad=1,
    )  # fmt: skip
    total = c.op("Mul", c.op("Relu", mean), c.number(math.prod(window.kernel)))
    return _unbatched(c, c.op("Pow", total, c.number(1 / order)), batched)


# --- adaptive pools ----------------------------------------------------------------------------


def _targets(c: Call, n: int) -> tuple[list[int], list[int]]:
    """Sizes of the spatial axes before and after."""
    out = c.out[0] if isinstance(c.out, (tuple, list)) else c.out
    given = static_sizes(c.spec().shape[-n:], "the pooled axis")
    return given, static_sizes(out.shape[-n:], "the pooled axis")


@emits("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive_avg_pool(c: Call) -> ir.Value:
    n = _spatial(c)
    given, made = _targets(c, n)
    x, batched = _image(c, n)
    if all(m == 1 for m in made):
        return _unbatched(c, c.builder.main(c.op("GlobalAveragePool", x)), batched)
    if given == made:
        return c.tensor()
    if all(g % m == 0 for g, m in zip(given, made, strict=True)):
        kernel = [g // m for g, m in zip(given, made, strict=True)]
        y = c.op("AveragePool", x, kernel_shape=kernel, strides=kernel)
        return _unbatched(c, c.builder.main(y), batched)
    for i in range(n):
        x = _axis_mean(c, x, i + 2, n + 2, given[i], made[i])
    return _unbatched(c, x, batched)


def _bounds(given: int, made: int) -> list[tuple[int, int]]:
    """Windows of an adaptive pool: [start, end) of each output."""
    return [(i * given // made, -(-(i + 1) * given // made)) for i in range(made)]


def _axis_mean(c: Call, x: ir.Value, axis: int, rank: int, given: int, made: int) -> ir.Value:
    """Means over windows of different lengths, as a product with a matrix."""
    if given == made:
        return x
    matrix = torch.zeros(given, made, dtype=c.spec().dtype)
    for i, (start, end) in enumerate(_bounds(given, made)):
        matrix[start:end, i] = 1 / (end - start)
    return along_axis(c, x, axis, rank, matrix)


@emits("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pool(c: Call) -> Any:
    n = _spatial(c)
    given, made = _targets(c, n)
    x, batched = _image(c, n)
    wants_indices = isinstance(c.out, (tuple, list))
    if all(m == 1 for m in made) and not wants_indices:
        return _unbatched(c, c.builder.main(c.op("GlobalMaxPool", x)), batched)
    if any(g % m for g, m in zip(given, made, strict=True)):
        if wants_indices:
            msg = "indices of windows of different lengths"
            raise UnsupportedError(msg)
        return _unbatched(c, _uneven_max(c, x, given, made), batched)
    kernel = [g // m for g, m in zip(given, made, strict=True)]
    count = 2 if wants_indices else 1
    values = c.builder.ops("MaxPool", count, x, kernel_shape=kernel, strides=kernel)
    c.builder.main(values[0])
    if not wants_indices:
        return _unbatched(c, values[0], batched)
    indices = c.op("Mod", values[1], c.builder.number(math.prod(given), torch.int64))
    return _unbatched(c, values[0], batched), _unbatched(c, indices, batched)


def _uneven_max(c: Call, x: ir.Value, given: Sequence[int], made: Sequence[int]) -> ir.Value:
    for i, (have, want) in enumerate(zip(given, made, strict=True)):
        windows = _bounds(have, want)
        longest = max(end - start for start, end in windows)
        # a shorter window repeats its last element, which changes no maximum
        table = [[min(start + k, end - 1) for k in range(longest)] for start, end in windows]
        x = c.op("Gather", x, c.builder.constant(np.array(table, np.int64)), axis=i + 2)
        x = c.reduce("ReduceMax", x, [i + 3])
    return x
