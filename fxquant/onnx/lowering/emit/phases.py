"""Convolutions of stride two over few channels, as convolutions of stride one over 2×2 blocks.

Before: `Conv (kernel 7×7, stride 2, pads 3)` of `[N, 3, 224, 224]`.
After:  `Transpose -> Reshape -> Split -> Concat -> Reshape -> Transpose` to `[N, 12, 112, 112]`,
then `Conv (kernel 4×4, stride 1, pads 2 and 1)`.

onnxruntime's integer convolution copies the values below its kernel, one position after the other;
with three channels that is three bytes at a time, and the first layer of a network takes a quarter
of its time. A block has four times as many channels at a quarter of the positions. The sums are the
same integers: weights that the larger kernel adds are zero. Between the Transposes, of which
onnxruntime takes the last one back, rows of blocks are moved, not single bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fxquant.nn import QuantizationMixin
from fxquant.onnx.lowering.stored_weights import Arrangement
from fxquant.onnx.lowering.values import LoweredValue
from fxquant.onnx.runs.observed import Shaped
from fxquant.quantization.affine import QuantizeDequantize

if TYPE_CHECKING:
    import onnx_ir as ir

    from fxquant.onnx.lowering.context import Call

_FEW = 4  # channels; more of them are long enough copies


class Axis(NamedTuple):
    """One spatial axis: zeros before the kernel, blocks it covers, padding in blocks."""

    front: int
    blocks: int
    begin: int
    end: int


def axes_of(c: Call, begin: list[int]) -> list[Axis] | None:
    """How both axes are cut into blocks; None where the convolution is written as it is."""
    if not (c.builder.contrib and _is_plain(c, begin) and _is_integer(c)):
        return None
    sizes = (c.spec().shape[2:], c.spec("weight").shape[2:], c.out.shape[2:])
    if not all(isinstance(size, int) for shape in sizes for size in shape):
        return None
    found = []
    for size, k, made, given in zip(*(map(int, shape) for shape in sizes), begin, strict=True):
        if size % 2 or k < 2:
            return None
        front = given % 2
        blocks = (k + front + 1) // 2
        first = (given + front) // 2
        found.append(Axis(front, blocks, first, made - 1 + blocks - first - size // 2))
    return found if all(axis.end >= 0 for axis in found) else None


def _is_plain(c: Call, begin: list[int]) -> bool:
    weight = c.spec("weight").shape
    return (
        len(begin) == 2
        and c.spec().rank == 4
        and isinstance(weight[1], int)
        and weight[1] <= _FEW
        and c.ints("stride", 2) == [2, 2]
        and c.ints("dilation", 2) == [1, 1]
        and int(c.static("groups")) == 1
        and getattr(c.module, "padding_mode", "zeros") == "zeros"
    )


def _is_integer(c: Call) -> bool:
    """Whether the kernel reads bytes, and zeros of the weight are zeros of its integers."""
    module: Any = c.module
    if not isinstance(module, QuantizationMixin) or "weight" not in module.param_quantizers:
        return False
    weight, held = module.param_quantizers["weight"], c.held("input")
    plain = type(weight) is QuantizeDequantize and weight.symmetric and weight.signed
    by_channel = plain and (not weight.shape or weight.shape[0] == max(weight.shape))
    byte = held.grid is not None and held.grid.grid.dtype.itemsize == 1
    return by_channel and weight.bitwidth == 8 and held.integers is not None and byte


def convolve(c: Call, axes: list[Axis]) -> ir.Value:
    """The convolution of the blocks."""
    weight = Arrangement(fronts=tuple(axis.front for axis in axes))
    return c.builder.main(
        c.op(
            "Conv",
            _blocks(c),
            c.parameter("weight", weight),
            c.parameter("bias"),
            kernel_shape=[axis.blocks for axis in axes],
            strides=[1, 1],
            dilations=[1, 1],
            pads=[*(axis.begin for axis in axes), *(axis.end for axis in axes)],
            group=1,
        )
    )


def _blocks(c: Call) -> ir.Value:
    """`[N, C, H, W] -> [N, 4 · C, H / 2, W / 2]`, channels in the order row, column, channel."""
    held = c.held("input")
    _, channels, height, width = held.spec.shape
    sizes = (channels, height, width)
    if held.integers is None or not all(isinstance(s, int) for s in sizes):
        msg = "the input is not on a grid or has a dynamic size"  # `axes_of` has looked
        raise RuntimeError(msg)
    channels, rows, columns = int(channels), int(height) // 2, int(width) // 2  # type: ignore[arg-type]
    x = c.op("Transpose", held.integers, perm=[0, 2, 3, 1])
    x = c.op("Reshape", x, [-1, rows, 2, columns, 2 * channels])
    x = c.op("Concat", *c.split(x, 2, [1, 1]), axis=4)
    x = c.op("Reshape", x, [-1, rows, columns, 4 * channels])
    x = c.op("Transpose", x, perm=[0, 3, 1, 2])
    spec = Shaped((held.spec.shape[0], 4 * channels, rows, columns), held.spec.dtype)
    return LoweredValue(spec, f"{c.path}.blocks", integers=x, grid=held.grid).value(c.builder)
