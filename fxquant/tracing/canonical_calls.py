"""How a call that torch shows is written in a graph: kind of node, target, arguments.

Everything here is about spelling; nothing knows about recording.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F


class Spelling(NamedTuple):
    """``op`` and ``target`` of an fx node; ``swap`` turns ``__rsub__(x, 2)`` into ``2 - x``."""

    op: str
    target: Any
    name: str
    swap: bool = False


# Tensor's operators written in Python or C that have no plain method of the same meaning
_OPERATORS = {
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__eq__": operator.eq,
    "__ne__": operator.ne,
    "__lt__": operator.lt,
    "__le__": operator.le,
    "__gt__": operator.gt,
    "__ge__": operator.ge,
    "__invert__": operator.invert,
    "__neg__": operator.neg,
    "__pos__": operator.pos,
    "__abs__": operator.abs,
    "__add__": operator.add,
    "__sub__": operator.sub,
    "__mul__": operator.mul,
    "__matmul__": operator.matmul,
    "__div__": operator.truediv,
    "__truediv__": operator.truediv,
    "__floordiv__": operator.floordiv,
    "__mod__": operator.mod,
    "__pow__": operator.pow,
    "__and__": operator.and_,
    "__or__": operator.or_,
    "__xor__": operator.xor,
    "__lshift__": operator.lshift,
    "__rshift__": operator.rshift,
    "__iadd__": operator.iadd,
    "__isub__": operator.isub,
    "__imul__": operator.imul,
    "__idiv__": operator.itruediv,
    "__itruediv__": operator.itruediv,
    "__ifloordiv__": operator.ifloordiv,
    "__imod__": operator.imod,
    "__ipow__": operator.ipow,
    "__iand__": operator.iand,
    "__ior__": operator.ior,
    "__ixor__": operator.ixor,
    "__ilshift__": operator.ilshift,
    "__irshift__": operator.irshift,
}


@functools.cache
def spelling(func: Callable[..., Any]) -> Spelling:
    """The node that repeats a call of ``func``.

    >>> spelling(torch.Tensor.relu)[:3]
    ('call_method', 'relu', 'relu')
    """
    name = getattr(func, "__name__", type(func).__name__)
    owner = getattr(func, "__self__", None)
    if name in {"__get__", "__set__"} and owner is not None:
        access = getattr if name == "__get__" else setattr
        return Spelling("call_function", access, owner.__name__)
    if not _is_method(func, name):
        return Spelling("call_function", func, name)
    if name in _OPERATORS:
        return Spelling("call_function", _OPERATORS[name], name.strip("_"))
    if name.startswith("__r") and f"__{name[3:]}" in _OPERATORS:
        op = _OPERATORS[f"__{name[3:]}"]
        return Spelling("call_function", op, op.__name__, swap=True)
    return Spelling("call_method", name, name)


def _is_method(func: Any, name: str) -> bool:
    if getattr(torch.Tensor, name, None) is func:
        return True
    kind = type(func).__name__
    return kind in {"method_descriptor", "wrapper_descriptor"} or str(
        getattr(func, "__qualname__", "")
    ).startswith(("Tensor.", "TensorBase."))


@functools.cache
def _defaults(func: Callable[..., Any]) -> dict[str, Any]:
    """Defaults of a function written in Python; nothing for those in C."""
    # F.max_pool2d and its like choose between two functions and take anything
    func = getattr(F, f"_{func.__name__}", func) if is_switch(func) else func
    try:
        parameters = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def is_switch(func: Any) -> bool:
    """Whether torch made the function with its ``boolean_dispatch``."""
    return "boolean_dispatch" in getattr(func, "__qualname__", "")


def written_kwargs(func: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments without those that only repeat a default.

    ``torch.nn.functional`` hands itself all its arguments on; the graph shows what was asked for.
    """
    if not kwargs:
        return kwargs
    defaults = _defaults(func)
    return {
        k: v
        for k, v in kwargs.items()
        if k != "_stacklevel"
        and not (k == "return_indices" and v is False)
        and not (k in defaults and _is_same(defaults[k], v))
    }


def _is_same(default: Any, value: Any) -> bool:
    return type(default) is type(value) and (
        default is value or (isinstance(default, bool | int | float | str) and default == value)
    )


@functools.cache
def body_of(func: Any, *, evaluating: bool = False) -> Callable[..., Any]:
    """The body of a Python function of torch, without the hand-over to a recording mode.

    ``F.multi_head_attention_forward`` begins with ``if has_torch_function(...): hand over``; to
    record what is inside it, the same code runs with names of its own for that question.

    Args:
        func: the function.
        evaluating: dropouts inside it do nothing, though they are called.
    """
    blind: dict[str, Any] = {
        name: lambda *_: False for name in func.__globals__ if name.startswith("has_torch_function")
    }
    if evaluating:
        blind["dropout"] = functools.partial(F.dropout, training=False)
    names = {**func.__globals__, **blind}
    body = type(func)(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body  # type: ignore[no-any-return]


@functools.cache
def autograd_call(kind: type[torch.autograd.Function]) -> Callable[..., Any]:
    """A plain function that applies an ``autograd.Function``; graphs need a name to call it by."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return kind.apply(*args, **kwargs)

    return named(call, kind.__name__, kind.__module__)


@functools.cache
def script_call(function: Any) -> Callable[..., Any]:
    """A plain function that calls a scripted function."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return named(call, str(getattr(function, "name", "scripted")), "scripted")


def named(call: Callable[..., Any], name: str, module: str) -> Callable[..., Any]:
    """Give a wrapper the name and module that generated code shows."""
    call.__name__ = call.__qualname__ = name
    call.__module__ = module
    return call


# functions of torch that are recorded through instead of as one call
THROUGH = frozenset({F.multi_head_attention_forward})
