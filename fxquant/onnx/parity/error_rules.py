"""What each ONNX operator does to a value and to its rounding error, in float64.

A rule takes operands with their errors and gives the exact result together with a bound of how far
one float32 program that computes it may be off: the operands' errors carried through the operator,
plus the operator's own roundings. `error_analysis.py` says what that is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch.nn import functional as F

from fxquant.onnx.parity.error_bounds import UNIT, unit_of
from fxquant.onnx.qdq import Trait, operators

Array = NDArray[Any]
_LAMBDA = 2.0  # six standard deviations of a sum whose partial sums grow steadily
_LARGEST_FLOAT16, _SMALLEST_FLOAT16 = 65504.0, 2.0**-25
_TRACED = 4  # columns of a reduction that are summed one after the other to see a biased rounding


class Undecided(Exception):
    """No rule covers the operator or its shapes; the static bound stands then."""


@dataclass(frozen=True)
class Valued:
    """A float64 value and a bound of a float32 program's error, of one shape.

    Attributes:
        value: what exact arithmetic gives; integers and booleans keep their type.
        error: how far a float32 program may be off; zero for integers.
    """

    value: Array
    error: Array

    @classmethod
    def exact(cls, array: Array | np.generic) -> Valued:
        """Something that every program starts from."""
        value = np.asarray(array)
        real = value.dtype.kind == "f" or value.dtype == ml_dtypes.bfloat16
        value = value.astype(np.float64) if real else value
        return cls(value, np.zeros(value.shape))


Operands = Sequence["Valued | None"]
Rule = Callable[[ir.Node, Operands, int], list[Valued]]


def evaluated(node: ir.Node, arrays: Sequence[Array | None], opset: int) -> list[Array]:
    """Run one node on arrays of any type, as the standard defines it.

    Raises:
        Undecided: the standard's reference has no implementation for these operands.
    """
    inputs = [None if a is None else ir.Value(name=f"x{i}") for i, a in enumerate(arrays)]
    copy = ir.node(node.op_type, inputs, num_outputs=len(node.outputs), domain=node.domain)
    for attribute in node.attributes.values():
        copy.attributes.add(attribute)
    for i, value in enumerate(copy.outputs):
        value.name = f"y{i}"
    feeds = {f"x{i}": a for i, a in enumerate(arrays) if a is not None}
    try:
        found = ReferenceEvaluator(ir.to_proto(copy), opsets={"": opset}).run(None, feeds)
    except Exception as error:  # whatever it cannot do; the static bound stands then
        raise Undecided(node.op_type) from error
    return [np.asarray(x) for x in found]


def given(operands: Operands, index: int) -> Valued:
    found = operands[index] if index < len(operands) else None
    if found is None:
        raise Undecided
    return found


def maybe(operands: Operands, index: int) -> Valued | None:
    return operands[index] if index < len(operands) else None


# --- arithmetic ----------------------------------------------------------------------------------


def add(a: Valued, b: Valued, sign: float = 1.0) -> Valued:
    """Sum or difference: errors add, which is what cancellation leaves."""
    value = a.value + sign * b.value
    return Valued(value, a.error + b.error + UNIT * np.abs(value))


def multiply(a: Valued, b: Valued) -> Valued:
    """Product."""
    value = a.value * b.value
    carried = np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error
    # zero times an unbounded error: a program may have anything there
    return Valued(value, np.where(np.isnan(carried), np.inf, carried) + UNIT * np.abs(value))


def divide(a: Valued, b: Valued) -> Valued:
    """Quotient; unbounded where the divisor may be zero."""
    value = a.value / b.value
    room = np.abs(b.value) - b.error
    carried = np.where(room > 0, (a.error + np.abs(value) * b.error) / room, np.inf)
    return Valued(value, carried + UNIT * np.abs(value))


def apply(function: Callable[[Array], Array], x: Valued, ulps: float, floor: float = 0.0) -> Valued:
    """A function of one variable: its change over [x - error, x + error], and its own roundings.

    Args:
        function: what is computed.
        x: operand.
        ulps: units of roundoff that implementations differ by, relative to the result.
        floor: and absolutely: for functions that are computed as parts of 1.
    """
    value = function(x.value)
    ends = [np.abs(function(x.value + s * x.error) - value) for s in (-1.0, 1.0)]
    # outside of its domain (log or root of what may be negative) nothing is known
    moved = np.where(np.isfinite(np.maximum(*ends)), np.maximum(*ends), np.inf)
    return Valued(value, np.where(x.error > 0, moved, 0.0) + UNIT * (ulps * np.abs(value) + floor))


def summed(x: Valued, axes: tuple[int, ...], *, keep: bool, mean: bool) -> Valued:
    """Sum or mean over axes."""
    count = math.prod(x.value.shape[a] for a in axes)
    value = x.value.sum(axis=axes, keepdims=keep)
    sizes = np.abs(x.value).sum(axis=axes, keepdims=keep)
    error = x.error.sum(axis=axes, keepdims=keep)
    error = error + roundings(count) * sizes + 2 * _biased(x.value, axes) * sizes
    divisor = max(count, 1) if mean else 1
    return Valued(value / divisor, error / divisor + UNIT * np.abs(value / divisor))


def roundings(terms: int) -> float:
    """Error of a sum of products, relative to the sum of magnitudes."""
    return UNIT * (min(float(terms), _LAMBDA * math.sqrt(terms)) + 2.0)


def _biased(x: Array, axes: tuple[int, ...]) -> float:
    """Relative error of plain float32 sums, traced for a few: equal terms are rounded one way.

    A constant area of a picture adds the same number over and over; each sum loses the same last
    bits, so roundings are not independent and the error grows with n, not with its root.
    """
    moved = np.moveaxis(x, axes, range(len(axes))).reshape(math.prod(x.shape[a] for a in axes), -1)
    if moved.shape[0] < 2 or moved.shape[1] == 0:
        return 0.0
    # those with the least spread are the likeliest to be biased
    spread = moved.std(axis=0) / (np.abs(moved).mean(axis=0) + 1e-300)
    columns = moved[:, np.argsort(spread)[:_TRACED]]
    off = np.cumsum(columns.astype(np.float32), axis=0, dtype=np.float32) - np.cumsum(columns, 0)
    sizes = np.abs(columns).sum(axis=0)
    return float((np.abs(off).max(axis=0) / np.where(sizes > 0, sizes, 1.0)).max())


def _add(_node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    total = given(operands, 0)
    for other in operands[1:]:
        total = add(total, other) if other is not None else total
    return [total]


def _subtract(_node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    return [add(given(operands, 0), given(operands, 1), -1.0)]


def _multiply(_node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    return [multiply(given(operands, 0), given(operands, 1))]


def _divide(_node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    return [divide(given(operands, 0), given(operands, 1))]


def _power(_node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    exponent = given(operands, 1).value
    if exponent.size != 1:
        raise Undecided
    power = float(exponent.reshape(-1)[0])
    return [apply(lambda v: np.asarray(v**power), given(operands, 0), 4.0)]


# --- what moves ----------------------------------------------------------------------------------


def _moved(node: ir.Node, operands: Operands, opset: int) -> list[Valued]:
    """The same elements elsewhere: errors move with them."""
    if any(o is not None and o.error.shape != o.value.shape for o in operands):
        raise Undecided
    values = evaluated(node, [None if o is None else o.value for o in operands], opset)
    floats = [
        None if o is None else (o.error if o.value.dtype.kind == "f" else o.value) for o in operands
    ]
    if node.op_type == "Pad" and len(floats) > 2 and floats[2] is not None:
        floats[2] = np.zeros_like(floats[2])  # what is padded with is exact
    errors = evaluated(node, floats, opset)
    return [Valued(v, np.asarray(e)) for v, e in zip(values, errors, strict=True)]


def _within(node: ir.Node, operands: Operands, opset: int) -> list[Valued]:
    """A function that never spreads its operands: the largest error of any of them."""
    (value,) = evaluated(node, [None if o is None else o.value for o in operands], opset)
    error = np.zeros(value.shape)
    for o in operands:
        if o is not None and o.error.ndim <= value.ndim:
            error = np.maximum(error, o.error)
    return [Valued(value, np.broadcast_to(error, value.shape))]


def _sloped(node: ir.Node, operands: Operands, opset: int) -> list[Valued]:
    """LeakyRelu, PRelu: a slope below zero."""
    (value,) = evaluated(node, [None if o is None else o.value for o in operands], opset)
    slope = maybe(operands, 1)
    most = slope.value if slope is not None else node.attributes.get_float("alpha", 0.01)
    error = given(operands, 0).error * np.maximum(1.0, np.abs(most))
    return [Valued(value, error + UNIT * np.abs(value))]


def _extreme(node: ir.Node, operands: Operands, opset: int) -> list[Valued]:
    """MaxPool, ReduceMax: no more than the largest error in the tensor."""
    x = given(operands, 0)
    arrays = [None if o is None else o.value for o in operands]
    value = evaluated(node, arrays, opset)[0]
    return [Valued(value, np.full(value.shape, float(x.error.max(initial=0.0))))]


def _cast(node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    if unit_of(ir.DataType(node.attributes.get_int("to", 1))) == 0:
        raise Undecided
    x = given(operands, 0)
    return [Valued(x.value.astype(np.float64), x.error)]


def _dequantize(node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    q, scale = given(operands, 0).value, given(operands, 1).value
    shift = maybe(operands, 2)
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)

    def spread(array: Array) -> Array:
        if array.size == 1:
            return array.reshape(())
        at = axis % q.ndim
        if array.ndim == 1 and q.ndim:
            return array.reshape([-1 if i == at else 1 for i in range(q.ndim)])
        return np.repeat(array, block, axis=at).take(range(q.shape[at]), axis=at)

    zero = spread(shift.value).astype(np.float64) if shift is not None else np.zeros(())
    value = (q.astype(np.float64) - zero) * spread(scale)
    return [Valued(value, UNIT * np.abs(value))]


# --- sums of products ----------------------------------------------------------------------------

Bilinear = Callable[[Array, Array], Array]


def products(a: Valued, b: Valued, function: Bilinear, terms: int) -> Valued:
    """Σ a·b by a function that is linear in both: its value and the sum of magnitudes."""
    value = function(a.value, b.value)
    sizes = function(np.abs(a.value), np.abs(b.value))
    error = roundings(terms) * sizes
    if a.error.any():
        error = error + function(a.error, np.abs(b.value))
    if b.error.any():
        error = error + function(np.abs(a.value) + a.error, b.error)
    return Valued(value, error)


def _matmul(_node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    a, b = given(operands, 0), given(operands, 1)
    return [products(a, b, np.matmul, a.value.shape[-1])]


def _gemm(node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    a, b = (
        Valued(o.value.T, o.error.T) if node.attributes.get_int(name, 0) else o
        for o, name in ((given(operands, 0), "transA"), (given(operands, 1), "transB"))
    )
    result = products(a, b, np.matmul, a.value.shape[-1])
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    if alpha != 1.0:
        result = multiply(result, Valued.exact(np.float64(alpha)))
    bias = maybe(operands, 2)
    if bias is None:
        return [result]
    return [add(result, multiply(bias, Valued.exact(np.float64(beta))) if beta != 1.0 else bias)]


def _einsum(node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    equation = node.attributes.get_string("equation", "")
    a, b = given(operands, 0), given(operands, 1)
    if len(operands) != 2 or "->" not in equation or "." in equation:
        raise Undecided
    left, right = equation.replace(" ", "").split("->")
    sizes: dict[str, int] = {}
    for names, o in zip(left.split(","), (a, b), strict=True):
        sizes |= dict(zip(names, o.value.shape, strict=True))
    terms = math.prod(size for name, size in sizes.items() if name not in right)
    return [products(a, b, lambda x, y: np.asarray(np.einsum(equation, x, y)), terms)]


def _convolve(node: ir.Node, operands: Operands, _opset: int) -> list[Valued]:
    x, w = given(operands, 0), given(operands, 1)
    rank, group = x.value.ndim - 2, node.attributes.get_int("group", 1)
    if rank not in (1, 2, 3) or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise Undecided
    strides = list(node.attributes.get_ints("strides", [1] * rank))
    dilations = list(node.attributes.get_ints("dilations", [1] * rank))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * rank))
    run: Any
    if node.op_type == "Conv":
        run = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
        around = [p for i in reversed(range(rank)) for p in (pads[i], pads[i + rank])]
        terms = math.prod(w.value.shape[1:])

        def function(a: Array, b: Array) -> Array:
            padded = F.pad(torch.from_numpy(np.ascontiguousarray(a)), around)
            kernel = torch.from_numpy(np.ascontiguousarray(b))
            made = run(padded, kernel, None, strides, 0, dilations, group)
            return np.asarray(made.numpy())
    else:
        if pads[:rank] != pads[rank:] or "output_shape" in node.attributes:
            raise Undecided
        run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
        more = list(node.attributes.get_ints("output_padding", [0] * rank))
        terms = w.value.shape[0] // group * math.prod(w.value.shape[2:])

        def function(a: Array, b: Array) -> Array:
            data, kernel = (torch.from_numpy(np.ascontiguousarray(t)) for t in (a, b))
            made = run(data, kernel, None, strides, pads[:rank], more, group, dilations)
            return np.asarray(made.numpy())

    result = products(x, w, function, terms)
    bias = maybe(operands, 2)
    if bias is None:
        return [result]
    shape = (1, -1, *[1] * rank)
    return [add(result, Valued(bias.value.reshape(shape), bias.error.reshape(shape)))]


# the standard's reference computes these number by number in Python
_SLOW = {"Resize", "ScatterElements", "ScatterND"}
BASIC: dict[str, Rule] = {
    **dict.fromkeys(("Add", "Sum"), _add),
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Pow": _power,
    **dict.fromkeys(operators(Trait.MOVES) - _SLOW, _moved),
    **dict.fromkeys(operators(Trait.CONTRACTS), _within),
    **dict.fromkeys(("LeakyRelu", "PRelu"), _sloped),
    **dict.fromkeys(operators(Trait.CHOOSES), _extreme),
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolve),
}

# operators whose results are values of their operands: they round nothing
EXACT = frozenset(name for name, rule in BASIC.items() if rule in (_moved, _within, _extreme))


def narrowed(x: Valued, unit: float) -> Valued:
    """What was computed in float32, rounded to a narrower type.

    Torch and onnxruntime compute an operator on float16 or bfloat16 in float32 and round its
    result; onnxruntime leaves the rounding out between two operators that it widens.

    Args:
        x: result with the error of its arithmetic.
        unit: unit roundoff of the type.
    """
    most = np.abs(x.value) + x.error
    error = x.error + unit * most
    if unit < unit_of(ir.DataType.BFLOAT16):  # float16
        # half the smallest subnormal number; beyond the largest one programs give infinity or not
        error = np.where(most < _LARGEST_FLOAT16, error + _SMALLEST_FLOAT16, np.inf)
    return Valued(x.value, np.where(np.isfinite(x.value), error, x.error))
