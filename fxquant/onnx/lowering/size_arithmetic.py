"""Arithmetic on sizes: plain integers stay integers, run-time sizes become int64 operators."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from fxquant.errors import ExportError
from fxquant.onnx.lowering.builder import Builder, data_type
from fxquant.onnx.lowering.context import path_of
from fxquant.onnx.lowering.values import LoweredValue, SizeValue

# sizes are never negative, so the truncating Div of ONNX is Python's floor division
_BINARY: dict[Any, str] = {
    operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul", operator.floordiv: "Div",
    operator.mod: "Mod", operator.iadd: "Add", operator.isub: "Sub", operator.imul: "Mul",
    operator.ifloordiv: "Div", max: "Max", min: "Min",
    torch.sym_max: "Max", torch.sym_min: "Min", operator.truediv: "Div", operator.pow: "Pow",
    math.pow: "Pow", operator.itruediv: "Div", operator.ipow: "Pow",
}  # fmt: skip
_REAL = frozenset({
    operator.truediv, operator.itruediv, operator.pow, operator.ipow, math.pow, math.sqrt, math.log,
    math.exp, float,
})  # fmt: skip
_UNARY: dict[Any, str] = {
    operator.neg: "Neg", abs: "Abs", operator.abs: "Abs", math.sqrt: "Sqrt", math.log: "Log",
    math.exp: "Exp", float: "Identity",
}  # fmt: skip
# what makes a number whole, and how ONNX rounds before the Cast
_WHOLE: dict[Any, str | None] = {
    int: None, torch.sym_int: None, operator.index: None, math.trunc: None, math.floor: "Floor",
    math.ceil: "Ceil", round: "Round",
}  # fmt: skip


def emit(node: fx.Node, resolve: Callable[[Any], Any], builder: Builder) -> Any:
    """The value of a node that computes sizes.

    Raises:
        ExportError: FXQ507, the value depends on an input in a way ONNX cannot follow.
    """
    args = [resolve(a) for a in node.args]
    kwargs = {k: resolve(v) for k, v in node.kwargs.items()}
    with builder.scope(path_of(node)):
        found = _shape_reading(node, args, kwargs, builder)
        if found is not None:
            return found
        if node.op == "call_function" and args and all(_is_number(a) for a in args):
            found = _arithmetic(node.target, args, builder)
            if found is not None:
                return found
    if node.op == "call_function" and not any(
        isinstance(a, (LoweredValue, SizeValue)) for a in args
    ):
        return node.target(*args, **kwargs)  # type: ignore[operator]
    raise ExportError(
        "FXQ507", f"the value of {node.target} depends on an input and is no tensor", at=node,
        fix="make it depend on shapes only, or keep it a tensor",
    )  # fmt: skip


def _shape_reading(node: fx.Node, args: list[Any], kwargs: dict[str, Any], builder: Builder) -> Any:
    """Sizes read from a tensor; None if the node does something else."""
    held = args[0] if args else None
    if not isinstance(held, LoweredValue):
        return None
    if node.target is getattr:
        return {"shape": _all_sizes(held, builder), "ndim": held.spec.rank,
                "dtype": held.spec.dtype}.get(args[1])  # fmt: skip
    name = str(node.target) if node.op == "call_method" else ""
    if name == "size":
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        return _all_sizes(held, builder) if dim is None else _size(held, dim, builder)
    if name in ("dim", "ndimension"):
        return held.spec.rank
    if name in ("numel", "nelement"):
        return _count(held, builder)
    return _size(held, 0, builder) if node.target is len else None


def _all_sizes(held: LoweredValue, builder: Builder) -> list[int | SizeValue]:
    return [_size(held, i, builder) for i in range(held.spec.rank)]


def _size(held: LoweredValue, axis: int, builder: Builder) -> int | SizeValue:
    size = held.spec.shape[axis]
    return size if isinstance(size, int) else SizeValue(held.size(builder, axis))


def _count(held: LoweredValue, builder: Builder) -> int | SizeValue:
    sizes = _all_sizes(held, builder)
    static = math.prod(s for s in sizes if isinstance(s, int))
    total: int | SizeValue = static
    for size in sizes:
        if isinstance(size, SizeValue):
            total = SizeValue(builder.op("Mul", size.value, _vector(total, builder)))
    return total


def _arithmetic(function: Any, args: list[Any], builder: Builder) -> Any:
    """A number computed from numbers; None if there is no operator for it."""
    if not any(isinstance(a, SizeValue) for a in args):
        return None  # Python computes it
    real = function in _REAL or any(not _is_whole(a) for a in args)
    dtype = torch.float64 if real else torch.int64
    if len(args) == 1:
        return _of_one(function, args[0], dtype, builder)
    kind = _BINARY.get(function)
    if kind is None or len(args) != 2:
        return None
    result = builder.op(kind, *(_vector(a, builder, dtype) for a in args))
    floored = function in (operator.floordiv, operator.ifloordiv) and real
    return SizeValue(builder.op("Floor", result) if floored else result, dtype)


def _of_one(function: Any, x: Any, dtype: torch.dtype, builder: Builder) -> Any:
    if function is operator.pos or (dtype == torch.int64 and function in _WHOLE):
        return x
    value = _vector(x, builder, dtype)
    if function in _UNARY:
        return SizeValue(builder.op(_UNARY[function], value), dtype)
    if function in _WHOLE:
        # int() cuts towards zero; numbers made of sizes are not negative
        rounded = value if _WHOLE[function] is None else builder.op(str(_WHOLE[function]), value)
        return SizeValue(builder.op("Cast", rounded, to=ir.DataType.INT64))
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, SizeValue)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return value.dtype == torch.int64 if isinstance(value, SizeValue) else isinstance(value, int)


def _vector(value: Any, builder: Builder, dtype: torch.dtype = torch.int64) -> ir.Value:
    """A number as a tensor of one element."""
    if not isinstance(value, SizeValue):
        return builder.constant(torch.tensor([value], dtype=dtype))
    if value.dtype == dtype:
        return value.value
    return builder.op("Cast", value.value, to=data_type(dtype))
