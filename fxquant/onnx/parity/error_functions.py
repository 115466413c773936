"""Reductions, functions and normalizations: what they do to a value and to its rounding error.

The normalizations are written by means of the rules of their parts, a variance as the mean of
squares of what was centred: torch and onnxruntime both compute it so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from fxquant.onnx.parity.error_bounds import ISLAND_ULPS, UNIT
from fxquant.onnx.parity.error_rules import (
    BASIC,
    Array,
    Operands,
    Rule,
    Undecided,
    Valued,
    add,
    apply,
    divide,
    evaluated,
    given,
    maybe,
    multiply,
    roundings,
    summed,
)


def _torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Array], Array]:
    return lambda x: np.asarray(function(torch.from_numpy(np.array(x, np.float64))).numpy())


def _unary(function: Callable[[Array], Array], ulps: float, floor: float = 0.0) -> Rule:
    def rule(_node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
        return [apply(function, given(operands, 0), ulps, floor)]

    return rule


def _standard(floor: float = 8.0) -> Rule:
    """A function with attributes (an alpha, an approximation): the standard's own definition."""

    def rule(node: ir.Node, operands: Operands, opset: int) -> list[Valued]:
        def function(x: Array) -> Array:
            return evaluated(node, [x], opset)[0]

        return [apply(function, given(operands, 0), ISLAND_ULPS, floor)]

    return rule


# --- reductions ----------------------------------------------------------------------------------


def _axes(node: ir.Node, operands: Operands, rank: int) -> tuple[int, ...]:
    operand = maybe(operands, 1)
    listed = node.attributes.get_ints("axes", [])
    axes = [int(a) for a in operand.value.reshape(-1)] if operand is not None else list(listed)
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        raise Undecided
    return tuple(a % rank for a in axes) or tuple(range(rank))


def _reduction(inner: Callable[[Valued], Valued], outer: Callable[[Valued], Valued]) -> Rule:
    def rule(node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
        x = given(operands, 0)
        if not x.value.ndim:
            raise Undecided
        axes, keep = _axes(node, operands, x.value.ndim), node.attributes.get_int("keepdims", 1)
        mean = node.op_type == "ReduceMean"
        return [outer(summed(inner(x), axes, keep=bool(keep), mean=mean))]

    return rule


def _same(x: Valued) -> Valued:
    return x


def _square(x: Valued) -> Valued:
    return multiply(x, x)


def _absolute(x: Valued) -> Valued:
    return Valued(np.abs(x.value), x.error)


def _root(x: Valued) -> Valued:
    """Square root: near zero it is the error that is rooted."""
    value = np.sqrt(np.maximum(x.value, 0.0))
    above = np.sqrt(np.maximum(x.value, 0.0) + x.error) - value
    below = value - np.sqrt(np.maximum(x.value - x.error, 0.0))
    return Valued(value, np.maximum(above, below) + 2 * UNIT * value)


def _log_sum_exp(node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    x = given(operands, 0)
    axes, keep = _axes(node, operands, x.value.ndim), bool(node.attributes.get_int("keepdims", 1))
    peak = x.value.max(axis=axes, keepdims=True)
    powers = np.exp(x.value - peak)
    total = powers.sum(axis=axes, keepdims=True)
    value = np.log(total) + peak
    # an exponential of what was shifted; a program that does not shift rounds relatively, as well
    count = math.prod(x.value.shape[a] for a in axes)
    shares = powers / total * (x.error + UNIT * np.abs(x.value - peak))
    error = shares.sum(axis=axes, keepdims=True) + roundings(count) + 2 * ISLAND_ULPS * UNIT
    error = error + UNIT * (np.abs(peak) + np.abs(value))
    if not keep:
        value, error = value.squeeze(axes), error.squeeze(axes)
    return [Valued(value, error)]


def _cumulative(node: ir.Node, operands: Operands, opset: int) -> list[Valued]:
    x, axis = given(operands, 0), int(given(operands, 1).value.reshape(-1)[0])
    places = given(operands, 1).value
    (value,) = evaluated(node, [x.value, places], opset)
    (sizes,) = evaluated(node, [np.abs(x.value), places], opset)
    (carried,) = evaluated(node, [x.error, places], opset)
    relative = roundings(x.value.shape[axis])
    return [Valued(value, carried + relative * sizes)]


def _global_average(_node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    x = given(operands, 0)
    return [summed(x, tuple(range(2, x.value.ndim)), keep=True, mean=True)]


def _average(node: ir.Node, operands: Operands, opset: int) -> list[Valued]:
    x = given(operands, 0)
    (value,), (sizes,), (carried,) = (
        evaluated(node, [part], opset) for part in (x.value, np.abs(x.value), x.error)
    )
    terms = math.prod(node.attributes.get_ints("kernel_shape", []))
    return [Valued(value, carried + (roundings(terms) + 2 * UNIT) * sizes)]


# --- softmax and normalizations ------------------------------------------------------------------


def _softmax(node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    x, axis = given(operands, 0), node.attributes.get_int("axis", -1)
    shifted = x.value - x.value.max(axis=axis, keepdims=True)
    powers = np.exp(shifted)
    y = powers / powers.sum(axis=axis, keepdims=True)
    far = np.where(y > 0, np.abs(shifted), 0.0)
    moved = x.error + UNIT * far
    common = (y * moved).sum(axis=axis, keepdims=True) + roundings(x.value.shape[axis])
    relative = moved + common + 2 * ISLAND_ULPS * UNIT
    if node.op_type == "LogSoftmax":
        value = shifted - np.log(powers.sum(axis=axis, keepdims=True))
        return [Valued(value, relative + UNIT * np.abs(value))]
    return [Valued(y, y * np.expm1(np.minimum(relative, 700.0)) + UNIT * y)]


def _normalized(
    x: Valued, axes: tuple[int, ...], epsilon: float, *, centred: bool = True
) -> Valued:
    """(x - mean) / sqrt(variance + epsilon)."""
    mean = summed(x, axes, keep=True, mean=True) if centred else Valued.exact(np.zeros(()))
    less = add(x, mean, -1.0) if centred else x
    variance = summed(_square(less), axes, keep=True, mean=True)
    shifted = add(variance, Valued.exact(np.float64(epsilon)))
    return divide(less, _root(shifted))


def _scaled(x: Valued, scale: Valued | None, bias: Valued | None, shape: tuple[int, ...]) -> Valued:
    for part, join in ((scale, multiply), (bias, add)):
        if part is not None:
            x = join(x, Valued(part.value.reshape(shape), part.error.reshape(shape)))
    return x


def _layer_norm(node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    x, scale = given(operands, 0), maybe(operands, 1)
    rank = x.value.ndim
    axes = tuple(range(node.attributes.get_int("axis", -1) % rank, rank))
    centred = node.op_type == "LayerNormalization"
    y = _normalized(x, axes, node.attributes.get_float("epsilon", 1e-5), centred=centred)
    shape = tuple(x.value.shape[axes[0] :])
    if scale is not None and scale.value.size != math.prod(shape):
        raise Undecided
    return [_scaled(y, scale, maybe(operands, 2), shape)]


def _instance_norm(node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    x = given(operands, 0)
    axes = tuple(range(2, x.value.ndim))
    y = _normalized(x, axes, node.attributes.get_float("epsilon", 1e-5))
    return [_scaled(y, maybe(operands, 1), maybe(operands, 2), (1, -1, *[1] * len(axes)))]


def _batch_norm(node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    x = given(operands, 0)
    shape = (1, -1, *[1] * (x.value.ndim - 2))
    scale, bias, mean, variance = (
        Valued(o.value.reshape(shape), o.error.reshape(shape))
        for o in (given(operands, i) for i in range(1, 5))
    )
    epsilon = Valued.exact(np.float64(node.attributes.get_float("epsilon", 1e-5)))
    factor = divide(scale, _root(add(variance, epsilon)))
    # programs fold the mean into the bias, or take it away first
    apart = add(multiply(add(x, mean, -1.0), factor), bias)
    folded = add(multiply(x, factor), add(bias, multiply(mean, factor), -1.0))
    return [Valued(apart.value, np.maximum(apart.error, folded.error))]


def _gelu_like(function: Callable[[torch.Tensor], torch.Tensor]) -> Rule:
    """x times something that is computed as a part of 1."""

    def rule(_node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
        x = given(operands, 0)
        y = apply(_torch(function), x, ISLAND_ULPS)
        return [Valued(y.value, 1.2 * y.error + 8 * UNIT * np.abs(x.value))]

    return rule


def _gelu(node: ir.Node, operands: Operands, opset: int) -> list[Valued]:
    kind = node.attributes.get_string("approximate", "none")
    rule = _gelu_like(lambda x: torch.nn.functional.gelu(x, approximate=kind))
    return rule(node, operands, opset)


_FUNCTIONS: dict[str, Any] = {
    "Exp": (np.exp, ISLAND_ULPS),
    "Log": (np.log, ISLAND_ULPS, 8.0),
    "Sigmoid": (_torch(torch.sigmoid), ISLAND_ULPS, 8.0),
    "Tanh": (np.tanh, ISLAND_ULPS, 8.0),
    "Erf": (_torch(torch.erf), ISLAND_ULPS, 8.0),
    "Sin": (np.sin, ISLAND_ULPS, 8.0),
    "Cos": (np.cos, ISLAND_ULPS, 8.0),
    "Softplus": (_torch(torch.nn.functional.softplus), ISLAND_ULPS, 8.0),
    "Sign": (np.sign, 0.0),
}


def _reciprocal(_node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    return [divide(Valued.exact(np.float64(1.0)), given(operands, 0))]


RULES: dict[str, Rule] = {
    **BASIC,
    "Reciprocal": _reciprocal,
    **{name: _unary(*given) for name, given in _FUNCTIONS.items()},
    **dict.fromkeys(("HardSigmoid", "Elu", "Selu", "Celu", "Softsign"), _standard()),
    "Sqrt": lambda _node, operands, _opset: [_root(given(operands, 0))],
    "HardSwish": _gelu_like(torch.nn.functional.hardswish),
    "Mish": _gelu_like(torch.nn.functional.mish),
    "Gelu": _gelu,
    **dict.fromkeys(("ReduceSum", "ReduceMean"), _reduction(_same, _same)),
    "ReduceSumSquare": _reduction(_square, _same),
    "ReduceL1": _reduction(_absolute, _same),
    "ReduceL2": _reduction(_square, _root),
    "ReduceLogSumExp": _log_sum_exp,
    "CumSum": _cumulative,
    "GlobalAveragePool": _global_average,
    "AveragePool": _average,
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    "InstanceNormalization": _instance_norm,
    "BatchNormalization": _batch_norm,
}
