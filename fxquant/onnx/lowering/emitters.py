"""Which function writes which operator: `@emits("conv2d")` by the rows of the operator table."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from fxquant.onnx.lowering.context import Call, Emitted

Emitter: TypeAlias = "Callable[[Call], Emitted]"

_FAMILIES = (
    "activation", "attention", "conv", "create", "elementwise", "group", "index", "linear", "move",
    "norm", "pool", "recurrent", "reduce", "resize", "spatial",
)  # fmt: skip
_BY_ROW: dict[str, Emitter] = {}
_BY_FUNCTION: dict[Any, Emitter] = {}
_BY_CLASS: dict[type[Any], Emitter] = {}


def emits(*rows: str) -> Callable[[Emitter], Emitter]:
    """Register an emitter for rows of the operator table; a later one replaces an earlier one.

    Example:
        >>> @emits("my_row")
        ... def my_row(c):
        ...     return c.op("Relu", c.tensor())
    """

    def register(emitter: Emitter) -> Emitter:
        _BY_ROW.update(dict.fromkeys(rows, emitter))
        return emitter

    return register


def emits_function(*functions: Any) -> Callable[[Emitter], Emitter]:
    """Register an emitter for functions and methods (by name) that have no row."""

    def register(emitter: Emitter) -> Emitter:
        _BY_FUNCTION.update(dict.fromkeys(functions, emitter))
        return emitter

    return register


def emits_class(*classes: type[Any]) -> Callable[[Emitter], Emitter]:
    """Register an emitter for module classes that have no row; subclasses are meant too."""

    def register(emitter: Emitter) -> Emitter:
        _BY_CLASS.update(dict.fromkeys(classes, emitter))
        return emitter

    return register


def emitter_of_row(name: str) -> Emitter | None:
    """The emitter of a row, or None."""
    load()
    return _BY_ROW.get(name)


def emitter_of_function(target: Any) -> Emitter | None:
    """The emitter of a function or method without a row, or None."""
    load()
    return _BY_FUNCTION.get(target)


def emitter_of_class(cls: type[Any]) -> Emitter | None:
    """The emitter of a module class without a row, or None."""
    load()
    return next((_BY_CLASS[c] for c in cls.__mro__ if c in _BY_CLASS), None)


@functools.cache
def load() -> None:
    """Import the families, which register themselves."""
    for name in _FAMILIES:
        importlib.import_module(f"fxquant.onnx.lowering.emit.{name}")
