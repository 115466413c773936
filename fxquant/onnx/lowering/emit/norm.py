"""Normalizations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxquant.onnx.lowering.context import Call, Emitted, UnsupportedError, static_sizes
from fxquant.onnx.lowering.emitters import emits

if TYPE_CHECKING:
    import onnx_ir as ir


@emits("batch_norm")
def _batch_norm(c: Call) -> ir.Value:
    if c["running_mean"] is None or (not _holds_mode(c) and c.static("training")):
        msg = "it normalizes with the statistics of the batch"
        raise UnsupportedError(msg)
    count = c.spec("running_mean").shape[0]
    scale = _vector(c, "weight", count, 1.0)
    bias = _vector(c, "bias", count, 0.0)
    mean, var = c.parameter("running_mean"), c.parameter("running_var")
    x, rank = c.tensor(), c.spec().rank
    if rank == 2 or rank > 1:
        return c.op("BatchNormalization", x, scale, bias, mean, var, epsilon=float(c.static("eps")))
    msg = "its input has no channels"
    raise UnsupportedError(msg)


def _holds_mode(c: Call) -> bool:
    """Whether the flag is that of a module, which evaluates, and not an argument of the call."""
    return isinstance(c.module, nn.modules.batchnorm._NormBase)


def _vector(c: Call, name: str, count: Any, fill: float) -> ir.Value:
    given = c.parameter(name)
    if given is not None:
        return given
    return c.builder.constant(torch.full((int(count),), fill, dtype=c.spec().dtype))


@emits("instance_norm")
def _instance_norm(c: Call) -> Emitted:
    module = c.module
    tracked = bool(getattr(module, "track_running_stats", False))
    if tracked or not c.static("use_input_stats"):
        return _batch_norm(c)
    count = static_sizes([c.spec().shape[1]], "the channels")[0]
    scale, bias = _vector(c, "weight", count, 1.0), _vector(c, "bias", count, 0.0)
    epsilon = float(c.static("eps"))
    return c.op("InstanceNormalization", c.tensor(), scale, bias, epsilon=epsilon)


@emits("layer_norm")
def _layer_norm(c: Call) -> ir.Value:
    shape = _normalized_shape(c)
    x, epsilon = c.tensor(), float(c.static("eps"))
    scale, bias = c.parameter("weight"), c.parameter("bias")
    if c.opset >= 17:
        if scale is None:
            scale = c.builder.constant(torch.ones(shape, dtype=c.spec().dtype))
        return c.op("LayerNormalization", x, scale, bias, axis=-len(shape), epsilon=epsilon)
    axes = list(range(-len(shape), 0))
    centered = c.op("Sub", x, c.reduce("ReduceMean", x, axes, keepdim=True))
    variance = c.reduce("ReduceMean", c.op("Mul", centered, centered), axes, keepdim=True)
    y = c.op("Div", centered, c.op("Sqrt", c.op("Add", variance, c.number(epsilon))))
    return _scaled(c, y, scale, bias)


def _normalized_shape(c: Call) -> list[int]:
    shape = c.static("normalized_shape")
    return [shape] if isinstance(shape, int) else [int(s) for s in shape]


def _scaled(c: Call, y: ir.Value, scale: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    if scale is not None:
        y = c.op("Mul", y, scale)
    return y if bias is None else c.op("Add", y, bias)


@emits("rms_norm")
def _rms_norm(c: Call) -> ir.Value:
    axes, x = list(range(-len(_normalized_shape(c)), 0)), c.tensor()
    eps = c.static("eps")
    epsilon = torch.finfo(c.spec().dtype).eps if eps is None else float(eps)
    square = c.reduce("ReduceMean", c.op("Mul", x, x), axes, keepdim=True)
    y = c.op("Div", x, c.op("Sqrt", c.op("Add", square, c.number(epsilon))))
    return _scaled(c, y, c.parameter("weight"), None)


@emits("group_norm")
def _group_norm(c: Call) -> ir.Value:
    """Groups as instances: GroupNormalization of ONNX is a function that comes to the same."""
    groups, shape = int(c.static("num_groups")), c.spec().shape
    channels = static_sizes([shape[1]], "the channels")[0]
    ones = torch.ones(groups, dtype=c.spec().dtype)
    held = c.held("input")
    inner = list(shape[1:])
    merged = math.prod(static_sizes(inner, "a group")) // groups
    x = c.reshape(c.tensor(), [shape[0], groups, merged], held)
    scale, zero = c.builder.constant(ones), c.builder.constant(ones * 0)
    x = c.op("InstanceNormalization", x, scale, zero, epsilon=float(c.static("eps")))
    y = c.builder.main(c.reshape(x, shape, held))
    form = [channels, *[1] * (len(shape) - 2)]
    weight, bias = c.parameter("weight"), c.parameter("bias")
    weight = None if weight is None else c.op("Reshape", weight, form)
    bias = None if bias is None else c.op("Reshape", bias, form)
    return _scaled(c, y, weight, bias)


@emits("local_response_norm")
def _local_response_norm(c: Call) -> ir.Value:
    size = int(c.static("size"))
    if size % 2 == 0:
        msg = "ONNX has local response normalization for odd sizes only"
        raise UnsupportedError(msg)
    alpha, beta, k = (float(c.static(n)) for n in ("alpha", "beta", "k"))
    return c.op("LRN", c.tensor(), alpha=alpha, beta=beta, bias=k, size=size)


def vector_norm(
    c: Call, x: ir.Value, order: Any, axes: list[int] | None, keepdim: bool
) -> ir.Value:
    """The norm of vectors along some axes."""
    if order in (2, 2.0, "fro", None):
        return c.reduce("ReduceL2", x, axes, keepdim)
    if order == 1:
        return c.reduce("ReduceL1", x, axes, keepdim)
    size = c.op("Abs", x)
    if order in (math.inf, -math.inf):
        return c.reduce("ReduceMax" if order > 0 else "ReduceMin", size, axes, keepdim)
    if order == 0:
        raise UnsupportedError("the norm of order 0")  # noqa: EM101, TRY003
    powers = c.op("Pow", size, c.number(float(order)))
    total = c.reduce("ReduceSum", powers, axes, keepdim)
    return c.op("Pow", total, c.number(1 / float(order)))


def norm_axes(c: Call) -> list[int] | None:
    """The axes that `dim` names; None for all."""
    dim = c.static("dim")
    if dim is None:
        return None
    return [int(d) for d in dim] if isinstance(dim, (tuple, list)) else [int(dim)]


@emits("norm")
def _norm(c: Call) -> ir.Value:
    x = c.cast(c.tensor(), c.spec().dtype, c.static("dtype"))
    return vector_norm(c, x, c.static("p"), norm_axes(c), bool(c.static("keepdim")))


@emits("vector_norm")
def _vector_norm(c: Call) -> ir.Value:
    axes, order = norm_axes(c), c.static("ord")
    x = c.cast(c.tensor("x"), c.spec("x").dtype, c.static("dtype"))
    return vector_norm(c, x, order, axes, bool(c.static("keepdim")))


@emits("linalg_norm")
def _linalg_norm(c: Call) -> ir.Value:
    axes, order = norm_axes(c), c.static("ord")
    rank = c.spec("A").rank
    matrix = order is not None and (
        (axes is None and rank == 2) or (axes is not None and len(axes) == 2)
    )
    if matrix and order != "fro":
        msg = f"the matrix norm {order!r}"
        raise UnsupportedError(msg)
    x = c.cast(c.tensor("A"), c.spec("A").dtype, c.static("dtype"))
    return vector_norm(c, x, order, axes, bool(c.static("keepdim")))


@emits("normalize")
def _normalize(c: Call) -> ir.Value:
    x = c.tensor()
    size = vector_norm(c, x, c.static("p"), norm_axes(c), keepdim=True)
    return c.op("Div", x, c.op("Max", size, c.number(c.static("eps"))))


@emits("cosine_similarity")
def _cosine_similarity(c: Call) -> ir.Value:
    (a, b), dtype = c.operands("x1", "x2")
    rank = max(c.spec("x1").rank, c.spec("x2").rank)
    axes = [int(c.static("dim")) % rank]
    least = c.number(c.static("eps"), dtype)
    lengths = [c.op("Max", c.reduce("ReduceL2", v, axes, keepdim=True), least) for v in (a, b)]
    units = [c.op("Div", v, n) for v, n in zip((a, b), lengths, strict=True)]
    return c.reduce("ReduceSum", c.op("Mul", *units), axes)
