"""Arithmetic on sizes: plain integers stay integers, run-time sizes become int64 operators."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxquant.errors import ExportError
from fxquant.onnx.builder import Builder
from fxquant.onnx.call import path_of
from fxquant.onnx.held import Held, SizeValue

# sizes are never negative, so the truncating Div of ONNX is Python's floor division
_BINARY: dict[Any, str] = {
    operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul", operator.floordiv: "Div",
    operator.mod: "Mod", operator.iadd: "Add", operator.isub: "Sub", operator.imul: "Mul",
    operator.ifloordiv: "Div", max: "Max", min: "Min",
    torch.sym_max: "Max", torch.sym_min: "Min",
}  # fmt: skip
_UNCHANGED = (int, torch.sym_int, operator.pos, operator.index, math.floor)


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
        kind = _BINARY.get(node.target) if node.op == "call_function" else None
        if kind is not None and len(args) == 2 and all(_is_size(a) for a in args):
            return SizeValue(builder.op(kind, *(_vector(a, builder) for a in args)))
        if node.target in _UNCHANGED and len(args) == 1:
            return args[0]
        if node.target is operator.neg and isinstance(args[0], SizeValue):
            return SizeValue(builder.op("Neg", args[0].value))
    if node.op == "call_function" and not any(isinstance(a, (Held, SizeValue)) for a in args):
        return node.target(*args, **kwargs)  # type: ignore[operator]
    raise ExportError(
        "FXQ507", f"the value of {node.target} depends on an input and is no tensor", at=node,
        fix="make it depend on shapes only, or keep it a tensor",
    )  # fmt: skip


def _shape_reading(node: fx.Node, args: list[Any], kwargs: dict[str, Any], builder: Builder) -> Any:
    """Sizes read from a tensor; None if the node does something else."""
    held = args[0] if args else None
    if not isinstance(held, Held):
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


def _all_sizes(held: Held, builder: Builder) -> list[int | SizeValue]:
    return [_size(held, i, builder) for i in range(held.spec.rank)]


def _size(held: Held, axis: int, builder: Builder) -> int | SizeValue:
    size = held.spec.shape[axis]
    return size if isinstance(size, int) else SizeValue(held.size(builder, axis))


def _count(held: Held, builder: Builder) -> int | SizeValue:
    sizes = _all_sizes(held, builder)
    static = math.prod(s for s in sizes if isinstance(s, int))
    total: int | SizeValue = static
    for size in sizes:
        if isinstance(size, SizeValue):
            total = SizeValue(builder.op("Mul", size.value, _vector(total, builder)))
    return total


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, SizeValue)) and not isinstance(value, bool)


def _vector(value: Any, builder: Builder) -> Any:
    return value.value if isinstance(value, SizeValue) else builder.constant([int(value)])
