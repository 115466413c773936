"""Arithmetic, comparison and logic, element by element."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from fxquant.onnx.lowering.context import Call, UnsupportedError
from fxquant.onnx.lowering.emitters import Emitter, emits

if TYPE_CHECKING:
    from collections.abc import Callable

_UNARY = {
    "neg": "Neg", "abs": "Abs", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "exp": "Exp",
    "log": "Log", "erf": "Erf", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin",
    "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "floor": "Floor",
    "ceil": "Ceil", "sign": "Sign", "isnan": "IsNaN", "isinf": "IsInf",
}  # fmt: skip
_KEEP_INTEGERS = frozenset({"neg", "abs", "sign"})
_COMPARISONS = {
    "eq": "Equal", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual",
}  # fmt: skip
_LOGIC = {"and": "And", "or": "Or", "xor": "Xor"}


def _unary(name: str, kind: str) -> Emitter:
    def emit(c: Call) -> ir.Value:
        have = c.spec().dtype
        wanted = None
        if not have.is_floating_point and name not in _KEEP_INTEGERS:
            wanted = torch.float32 if c.out.dtype == torch.bool else c.out.dtype
        return c.op(kind, c.cast(c.tensor(), have, wanted))

    return emit


for _name, _kind in _UNARY.items():
    emits(_name)(_unary(_name, _kind))


def _formula(name: str) -> Callable[[Callable[[Call, ir.Value], ir.Value]], None]:
    """Register a formula of one floating-point operand."""

    def register(write: Callable[[Call, ir.Value], ir.Value]) -> None:
        emits(name)(lambda c: write(c, c.cast(c.tensor(), c.spec().dtype, c.out.dtype)))

    return register


def _const(c: Call, x: float) -> ir.Value:
    return c.number(x, c.out.dtype)


@_formula("rsqrt")
def _rsqrt(c: Call, x: ir.Value) -> ir.Value:
    return c.op("Reciprocal", c.op("Sqrt", x))


@_formula("square")
def _square(c: Call, x: ir.Value) -> ir.Value:
    return c.op("Mul", x, x)


@_formula("exp2")
def _exp2(c: Call, x: ir.Value) -> ir.Value:
    return c.op("Pow", _const(c, 2.0), x)


@_formula("expm1")
def _expm1(c: Call, x: ir.Value) -> ir.Value:
    # 2 sinh(x/2) exp(x/2): no digits are lost near zero
    half = c.op("Mul", x, _const(c, 0.5))
    return c.op("Mul", c.op("Mul", c.op("Sinh", half), _const(c, 2.0)), c.op("Exp", half))


@_formula("log2")
def _log2(c: Call, x: ir.Value) -> ir.Value:
    return c.op("Div", c.op("Log", x), _const(c, math.log(2)))


@_formula("log10")
def _log10(c: Call, x: ir.Value) -> ir.Value:
    return c.op("Div", c.op("Log", x), _const(c, math.log(10)))


@_formula("log1p")
def _log1p(c: Call, x: ir.Value) -> ir.Value:
    return c.op("Log", c.op("Add", x, _const(c, 1.0)))


def truncated(c: Call, x: ir.Value) -> ir.Value:
    """Towards zero; ONNX rounds down only."""
    return c.op("Mul", c.op("Sign", x), c.op("Floor", c.op("Abs", x)))


@_formula("trunc")
def _trunc(c: Call, x: ir.Value) -> ir.Value:
    return truncated(c, x)


@_formula("frac")
def _frac(c: Call, x: ir.Value) -> ir.Value:
    return c.op("Sub", x, truncated(c, x))


@emits("round")
def _round(c: Call) -> ir.Value:
    decimals = int(c.static("decimals"))
    if not decimals:
        return c.op("Round", c.tensor())
    factor = c.number(10.0 ** abs(decimals))
    there, back = ("Mul", "Div") if decimals > 0 else ("Div", "Mul")
    return c.op(back, c.op("Round", c.op(there, c.tensor(), factor)), factor)


# --- two operands ------------------------------------------------------------------------------


def _scaled(c: Call, x: ir.Value, factor: object, dtype: torch.dtype) -> ir.Value:
    if factor == 1:
        return x
    if not isinstance(factor, (int, float)):
        msg = "a factor known at run time"
        raise UnsupportedError(msg)
    return c.op("Mul", x, c.builder.number(factor, dtype))


@emits("add")
def _add(c: Call) -> ir.Value:
    return _sum(c, "Add")


@emits("sub")
def _sub(c: Call) -> ir.Value:
    return _sum(c, "Sub")


def _sum(c: Call, kind: str) -> ir.Value:
    (a, b), dtype = c.operands("input", "other")
    if dtype == torch.bool:
        return c.op("Or", a, b)
    return c.op(kind, a, _scaled(c, b, c.static("alpha"), dtype))


@emits("mul")
def _mul(c: Call) -> ir.Value:
    (a, b), dtype = c.operands("input", "other")
    return c.op("And" if dtype == torch.bool else "Mul", a, b)


@emits("div")
def _div(c: Call) -> ir.Value:
    mode = c.static("rounding_mode")
    (a, b), dtype = c.operands("input", "other", dtype=None if mode else c.out.dtype)
    if mode == "floor":
        return _floor_quotient(c, a, b, dtype)
    y = c.op("Div", a, b)
    return truncated(c, y) if mode == "trunc" and dtype.is_floating_point else y


@emits("floor_divide")
def _floor_divide(c: Call) -> ir.Value:
    (a, b), dtype = c.operands("input", "other")
    return _floor_quotient(c, a, b, dtype)


def _floor_quotient(c: Call, a: ir.Value, b: ir.Value, dtype: torch.dtype) -> ir.Value:
    if dtype.is_floating_point:
        return c.op("Floor", c.op("Div", a, b))
    # Div of integers rounds towards zero; Mod follows the divisor's sign
    return c.op("Div", c.op("Sub", a, c.op("Mod", a, b)), b)


@emits("fmod")
def _fmod(c: Call) -> ir.Value:
    (a, b), _ = c.operands("input", "other")
    return c.op("Mod", a, b, fmod=1)


@emits("remainder")
def _remainder(c: Call) -> ir.Value:
    (a, b), dtype = c.operands("input", "other")
    if not dtype.is_floating_point:
        return c.op("Mod", a, b)
    rest, zero = c.op("Mod", a, b, fmod=1), c.builder.number(0.0, dtype)
    opposite = c.op("Xor", c.op("Less", rest, zero), c.op("Less", b, zero))
    wrong = c.op("And", opposite, c.op("Not", c.op("Equal", rest, zero)))
    return c.op("Where", wrong, c.op("Add", rest, b), rest)


@emits("pow")
def _pow(c: Call) -> ir.Value:
    exponent = c.resolve(c["exponent"])
    if isinstance(exponent, (int, float)) and exponent == 2:
        x = c.cast(c.tensor(), c.spec().dtype, c.out.dtype)
        return c.op("Mul", x, x)
    (a, b), _ = c.operands("input", "exponent", dtype=c.out.dtype)
    return c.op("Pow", a, b)


@emits("atan2")
def _atan2(c: Call) -> ir.Value:
    """The angle of (other, input): the arc tangent, moved by pi in the left half plane."""
    (y, x), dtype = c.operands("input", "other", dtype=c.out.dtype)
    zero, pi = c.builder.number(0.0, dtype), c.builder.number(math.pi, dtype)
    turn = c.op("Where", c.op("Less", y, zero), c.op("Neg", pi), pi)
    left = c.op("Less", x, zero)
    angle = c.op("Atan", c.op("Div", y, x))
    moved = c.op("Add", angle, c.op("Where", left, turn, zero))
    both = c.op("And", c.op("Equal", x, zero), c.op("Equal", y, zero))
    return c.op("Where", both, zero, moved)


def _two(kind: str) -> Emitter:
    def emit(c: Call) -> ir.Value:
        values, _ = c.operands("input", "other")
        return c.op(kind, *values)

    return emit


emits("maximum")(_two("Max"))
emits("minimum")(_two("Min"))


@emits("lerp")
def _lerp(c: Call) -> ir.Value:
    (a, b, w), _ = c.operands("input", "end", "weight", dtype=c.out.dtype)
    return c.op("Add", a, c.op("Mul", w, c.op("Sub", b, a)))


@emits("addcmul")
def _addcmul(c: Call) -> ir.Value:
    (x, a, b), dtype = c.operands("input", "tensor1", "tensor2", dtype=c.out.dtype)
    product = _scaled(c, c.op("Mul", a, b), c.static("value"), dtype)
    return c.op("Add", x, product)


# --- bounds and choices ------------------------------------------------------------------------


@emits("clamp")
def _clamp(c: Call) -> ir.Value:
    return _clamped(c, "min", "max")


@emits("clamp_min")
def _clamp_min(c: Call) -> ir.Value:
    return _clamped(c, "min", "")


@emits("clamp_max")
def _clamp_max(c: Call) -> ir.Value:
    return _clamped(c, "", "max")


def _clamped(c: Call, low: str, high: str) -> ir.Value:
    dtype = c.out.dtype
    x = c.cast(c.tensor(), c.spec().dtype, dtype)
    given = {n: c[n] for n in (low, high) if n and c[n] is not None}
    if not any(c.is_tensor(n) for n in given):
        bounds = [c.value(given[n], n, dtype) if n in given else None for n in (low, high)]
        return c.op("Clip", x, *bounds)
    for name, kind in ((low, "Max"), (high, "Min")):
        if name in given:
            x = c.op(kind, x, c.value(given[name], name, dtype))
    return x


@emits("nan_to_num")
def _nan_to_num(c: Call) -> ir.Value:
    x, dtype = c.tensor(), c.out.dtype
    limits = torch.finfo(dtype)
    above, below = c.static("posinf"), c.static("neginf")
    nan = _const(c, c.static("nan") or 0.0)
    x = c.op("Where", c.op("IsNaN", x), nan, x)
    for value, default, sides in ((above, limits.max, (0, 1)), (below, limits.min, (1, 0))):
        negative, positive = sides
        infinite = c.op("IsInf", x, detect_negative=negative, detect_positive=positive)
        x = c.op("Where", infinite, _const(c, default if value is None else value), x)
    return x


@emits("where")
def _where(c: Call) -> ir.Value:
    condition = c.cast(c.tensor("condition"), c.spec("condition").dtype, torch.bool)
    (a, b), _ = c.operands("input", "other", dtype=c.out.dtype)
    return c.op("Where", condition, a, b)


@emits("masked_fill")
def _masked_fill(c: Call) -> ir.Value:
    dtype = c.out.dtype
    mask = c.cast(c.value(c["mask"], "mask"), c.spec("mask").dtype, torch.bool)
    return c.op("Where", mask, c.value(c["value"], "value", dtype), c.tensor())


# --- comparison and logic ----------------------------------------------------------------------


def _comparable(c: Call) -> list[ir.Value]:
    dtype = c.promoted("input", "other")
    # ONNX orders numbers only
    return c.operands("input", "other", dtype=torch.int32 if dtype == torch.bool else dtype)[0]


def _comparison(kind: str) -> Emitter:
    return lambda c: c.op(kind, *_comparable(c))


for _name, _kind in _COMPARISONS.items():
    emits(_name)(_comparison(_kind))


@emits("ne")
def _not_equal(c: Call) -> ir.Value:
    return c.op("Not", c.op("Equal", *_comparable(c)))


def _logical(kind: str) -> Emitter:
    def emit(c: Call) -> ir.Value:
        values = [c.value(c[n], n, torch.bool) for n in ("input", "other")]
        return c.op(kind, *values)

    return emit


def _bitwise(kind: str) -> Emitter:
    def emit(c: Call) -> ir.Value:
        values, dtype = c.operands("input", "other")
        if dtype == torch.bool:
            return c.op(kind, *values)
        if c.opset < 18:
            msg = "bitwise operators on integers came with opset 18"
            raise UnsupportedError(msg)
        return c.op(f"Bitwise{kind}", *values)

    return emit


for _name, _kind in _LOGIC.items():
    emits(f"logical_{_name}")(_logical(_kind))
    emits(f"bitwise_{_name}")(_bitwise(_kind))


@emits("logical_not")
def _logical_not(c: Call) -> ir.Value:
    return c.op("Not", c.cast(c.tensor(), c.spec().dtype, torch.bool))


@emits("bitwise_not")
def _bitwise_not(c: Call) -> ir.Value:
    if c.spec().dtype == torch.bool:
        return c.op("Not", c.tensor())
    # -1 - x has the same bits turned, in every opset
    minus_one = c.builder.number(-1, c.spec().dtype)
    return c.op("Sub", minus_one, c.tensor())
