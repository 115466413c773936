"""Reductions, sorting and counting."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from fxquant.onnx.lowering.builder import data_type
from fxquant.onnx.lowering.context import Call, UnsupportedError, static_sizes
from fxquant.onnx.lowering.emitters import Emitter, emits

if TYPE_CHECKING:
    from collections.abc import Sequence


def axes_of(c: Call) -> list[int] | None:
    """The axes that `dim` names, counted from the left; None for all."""
    dim = c.static("dim")
    if dim is None or dim in ((), []):
        return None
    rank = max(c.spec().rank, 1)
    given = dim if isinstance(dim, (tuple, list)) else (dim,)
    return [int(d) % rank for d in given]


def _computed(c: Call) -> ir.Value:
    """The input in the dtype that the result is computed in."""
    wanted = c.static("dtype") if "dtype" in c.arguments else None
    have = c.spec().dtype
    if wanted is None and not have.is_floating_point:
        wanted = c.out.dtype  # sums of integers and booleans are int64
    return c.cast(c.tensor(), have, wanted)


@emits("mean")
def _mean(c: Call) -> ir.Value:
    x, axes, keepdim = _computed(c), axes_of(c), bool(c.static("keepdim"))
    rank = c.spec().rank
    if rank > 2 and axes is not None and sorted(axes) == list(range(2, rank)):
        # onnxruntime has an integer kernel for this form, none for ReduceMean
        y = c.builder.main(c.op("GlobalAveragePool", x))
        return y if keepdim else c.squeeze(y, axes)
    return c.reduce("ReduceMean", x, axes, keepdim)


def _reduction(kind: str) -> Emitter:
    def emit(c: Call) -> ir.Value:
        return c.reduce(kind, _computed(c), axes_of(c), bool(c.static("keepdim")))

    return emit


emits("sum")(_reduction("ReduceSum"))
emits("prod")(_reduction("ReduceProd"))
emits("logsumexp")(_reduction("ReduceLogSumExp"))
emits("amax")(_reduction("ReduceMax"))
emits("amin")(_reduction("ReduceMin"))


def _logical(kind: str) -> Emitter:
    def emit(c: Call) -> ir.Value:
        flags = c.cast(c.tensor(), c.spec().dtype, torch.bool)
        numbers = c.op("Cast", flags, to=ir.DataType.INT32)
        y = c.reduce(kind, numbers, axes_of(c), bool(c.static("keepdim")))
        return c.op("Cast", y, to=ir.DataType.BOOL)

    return emit


emits("any")(_logical("ReduceMax"))
emits("all")(_logical("ReduceMin"))


def _variance(c: Call) -> tuple[ir.Value, ir.Value]:
    """Variance and mean."""
    x, axes, keepdim = c.tensor(), axes_of(c), bool(c.static("keepdim"))
    shape = c.spec().shape
    reduced = range(len(shape)) if axes is None else axes
    correction = c.static("correction")
    if correction is None:
        correction = int(bool(c.static("unbiased")))
    mean = c.reduce("ReduceMean", x, axes, keepdim=True)
    centered = c.op("Sub", x, mean)
    total = c.reduce("ReduceSum", c.op("Mul", centered, centered), axes, keepdim)
    variance = c.op("Div", total, _degrees(c, reduced, correction))
    if keepdim:
        return variance, mean
    return variance, c.reduce("ReduceMean", x, axes)


def _degrees(c: Call, axes: Sequence[int], correction: float) -> ir.Value:
    """Number of elements, less the correction."""
    shape = c.spec().shape
    static = math.prod(s for i in axes if isinstance(s := shape[i], int))
    dynamic = [c.held("input").size(c.builder, i) for i in axes if not isinstance(shape[i], int)]
    if not dynamic:
        return c.number(float(max(static - correction, 0)))
    count: ir.Value = c.builder.constant([static])
    for size in dynamic:
        count = c.op("Mul", count, size)
    real = c.op("Cast", c.squeeze(count, [0]), to=data_type(c.spec().dtype))
    return c.op("Sub", real, c.number(float(correction)))


@emits("var")
def _var(c: Call) -> ir.Value:
    return _variance(c)[0]


@emits("std")
def _std(c: Call) -> ir.Value:
    return c.op("Sqrt", _variance(c)[0])


@emits("var_mean")
def _var_mean(c: Call) -> tuple[ir.Value, ir.Value]:
    return _variance(c)


def _extreme(kind: str) -> Emitter:
    def emit(c: Call) -> Any:
        if c.is_tensor("dim"):  # torch.max(a, b)
            values, _ = c.operands("input", "dim")
            return c.op(kind, *values)
        if c.static("dim") is None:
            return c.reduce(f"Reduce{kind}", c.tensor(), None)
        axis, keepdim = c.axis(), bool(c.static("keepdim"))
        values_ = c.reduce(f"Reduce{kind}", c.tensor(), [axis], keepdim)
        where = c.op(f"Arg{kind}", c.tensor(), axis=axis, keepdims=int(keepdim))
        return c.builder.main(values_), where

    return emit


emits("max")(_extreme("Max"))
emits("min")(_extreme("Min"))


def _arg_extreme(kind: str) -> Emitter:
    def emit(c: Call) -> ir.Value:
        x, keepdim = c.tensor(), int(bool(c.static("keepdim")))
        if c.static("dim") is not None:
            return c.op(kind, x, axis=c.axis(), keepdims=keepdim)
        flat = c.op(kind, c.op("Reshape", x, [-1]), axis=0, keepdims=0)
        return c.reshape(flat, c.out.shape) if keepdim else flat

    return emit


emits("argmax")(_arg_extreme("ArgMax"))
emits("argmin")(_arg_extreme("ArgMin"))


@emits("cumsum")
def _cumsum(c: Call) -> ir.Value:
    return c.op("CumSum", _computed(c), c.builder.number(c.axis(), torch.int64))


@emits("cumprod")
def _cumprod(c: Call) -> ir.Value:
    """Products over windows of 1, 2, 4 ... elements: a step doubles what each one covers."""
    axis, y = c.axis(), _computed(c)
    shape = c.spec().shape
    length = static_sizes([shape[axis]], "the axis")[0]
    step = 1
    while step < length:
        begin = [step if i == axis else 0 for i in range(len(shape))]
        one = c.number(1.0, c.out.dtype)
        kept = c.slice(y, axis, 0, -step)
        shifted = c.op("Pad", kept, [*begin, *[0] * len(shape)], one, mode="constant")
        y = c.op("Mul", y, shifted)
        step *= 2
    return y


def _top(c: Call, k: Sequence[Any], *, largest: bool, axis: int) -> tuple[ir.Value, ir.Value]:
    count = c.builder.vector(k)
    x = c.tensor()
    values = c.builder.ops("TopK", 2, x, count, axis=axis, largest=int(largest), sorted=1)
    return values[0], values[1]


@emits("topk")
def _topk(c: Call) -> tuple[ir.Value, ir.Value]:
    return _top(c, c.sizes(c["k"]), largest=bool(c.static("largest")), axis=c.axis())


@emits("sort")
def _sort(c: Call) -> tuple[ir.Value, ir.Value]:
    return _sorted(c)


@emits("argsort")
def _argsort(c: Call) -> ir.Value:
    return _sorted(c)[1]


def _sorted(c: Call) -> tuple[ir.Value, ir.Value]:
    axis = c.axis()
    size = c.spec().shape[axis]
    k = size if isinstance(size, int) else c.held("input").size(c.builder, axis)
    return _top(c, [k], largest=bool(c.static("descending")), axis=axis)


@emits("one_hot")
def _one_hot(c: Call) -> ir.Value:
    depth, values = c.out.shape[-1], c.builder.constant(torch.tensor([0, 1]))
    if isinstance(depth, int):
        return c.op("OneHot", c.tensor(), [depth], values, axis=-1)
    if c.static("num_classes") != -1:
        msg = "the number of classes is dynamic"
        raise UnsupportedError(msg)
    # left open: up to the largest value
    count = c.op("Add", c.reduce("ReduceMax", c.tensor(), None), c.number(1, torch.int64))
    return c.op("OneHot", c.tensor(), count, values, axis=-1)


@emits("bucketize")
def _bucketize(c: Call) -> ir.Value:
    """The number of boundaries below each value."""
    (x, edges), _ = c.operands("input", "boundaries")
    last = c.unsqueeze(x, [-1])
    kind = "GreaterOrEqual" if c.static("right") else "Greater"
    below = c.op("Cast", c.op(kind, last, edges), to=ir.DataType.INT64)
    count = c.reduce("ReduceSum", below, [-1])
    return c.cast(count, torch.int64, c.out.dtype)


@emits("nonzero")
def _nonzero(c: Call) -> ir.Value | list[ir.Value]:
    if c.static("as_tuple"):
        places = c.op("NonZero", c.tensor())
        axes = c.builder.ops("Split", c.spec().rank, places, [1] * c.spec().rank, axis=0)
        return [c.squeeze(axis, [0]) for axis in axes]
    return c.op("Transpose", c.op("NonZero", c.tensor()), perm=[1, 0])
