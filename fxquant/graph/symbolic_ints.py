"""Numbers that remember how the recorded program computed them.

``x.shape`` gives ordinary integers, so a batch size would be frozen into the graph. While a model
is recorded it gives ``TInt`` instead: an ``int`` (models test ``isinstance(n, int)``, and torch's
C++ takes subclasses) whose arithmetic also builds fx nodes, made when a recorded call first
uses them. A Python decision on such a number (a comparison, ``int()``, a float in C code) cannot be
followed; it is reported to the recorder as a look.
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch.fx import Node


class Change(enum.IntEnum):
    """What can make a size or a value differ in another run; the larger one wins."""

    NEVER = 0
    SIZE = 1
    VALUE = 2


class Keeper(Protocol):
    """What a tracked number needs from its recorder."""

    closed: bool

    def arithmetic(self, op: Callable[..., Any], operands: tuple[Any, ...], value: Any) -> Node:
        """A node that computes ``op(*operands)``."""

    def read_data(self, change: Change, what: str, value: object) -> None:
        """Python decided on a number: remember where."""


class Trail:
    """How a number came to be: a node, or a recipe for one made on first use."""

    __slots__ = ("_make", "_node", "change", "keeper")

    def __init__(self, keeper: Keeper, change: Change, make: Callable[[], Node]) -> None:
        self.keeper = keeper
        self.change = change
        self._make: Callable[[], Node] | None = make
        self._node: Node | None = None

    def node(self) -> Node:
        """The fx node of the number."""
        if self._node is None and self._make is not None:
            self._node = self._make()
            self._make = None
        if self._node is None:
            msg = "a tracked number lost its recipe"
            raise RuntimeError(msg)
        return self._node


class Tracked:
    """Arithmetic shared by ``TInt`` and ``TFloat``."""

    trail: Trail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(plain(self)), (plain(self),)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return plain(self)


class TInt(Tracked, int):
    """An ``int`` with a trail."""

    def __hash__(self) -> int:
        return int.__hash__(self)


class TFloat(Tracked, float):
    """A ``float`` with a trail."""

    def __hash__(self) -> int:
        return float.__hash__(self)


def plain(value: Any) -> Any:
    """The bare number of a tracked one; anything else as it is.

    >>> plain(3)
    3
    """
    if isinstance(value, TInt):
        return int.__add__(value, 0)
    if isinstance(value, TFloat):
        return float.__mul__(value, 1.0)
    return value


def tracked(value: Any, trail: Trail) -> Any:
    """``value`` with a trail: a ``TInt`` or ``TFloat``; other types stay bare."""
    if type(value) is int:
        number: Any = TInt(value)
    elif type(value) is float:
        number = TFloat(value)
    else:
        return value
    number.trail = trail
    return number


def _combine(op: Callable[..., Any], *operands: Any) -> Any:
    """``op(*operands)`` as a tracked number."""
    value = op(*(plain(v) for v in operands))
    trails = [v.trail for v in operands if isinstance(v, Tracked)]
    keeper = trails[0].keeper
    if keeper.closed:
        return value
    change = max(t.change for t in trails)
    return tracked(value, Trail(keeper, change, lambda: keeper.arithmetic(op, operands, value)))


def read_data(number: Any, what: str, value: object) -> Any:
    """Report that Python decided on a tracked number; returns ``value``."""
    keeper = number.trail.keeper
    if not keeper.closed:
        keeper.read_data(number.trail.change, what, value)
    return value


def _binary(op: Callable[..., Any], *, swapped: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if isinstance(other, bool) or not isinstance(other, int | float):
            if isinstance(other, list | tuple | str):
                # [x] * n repeats a list: the number of repetitions is frozen
                read_data(self, "repetition", plain(self))
            return NotImplemented
        return _combine(op, other, self) if swapped else _combine(op, self, other)

    return method


def _unary(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *digits: _combine(op, self, *digits)


def _compare(op: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        return read_data(self, "comparison", op(plain(self), plain(other)))

    return method


def _convert(kind: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: read_data(self, f"{kind.__name__}()", kind(plain(self)))


def _fit(kind: type, name: str, method: Callable[..., Any]) -> None:
    method.__name__ = name
    setattr(kind, name, method)


_BINARY = ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow")
_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
for _kind in (TInt, TFloat):
    for _name in _BINARY:
        _op = getattr(operator, _name)
        _fit(_kind, f"__{_name}__", _binary(_op))
        _fit(_kind, f"__r{_name}__", _binary(_op, swapped=True))
    for _name in _COMPARE:
        _fit(_kind, f"__{_name}__", _compare(getattr(operator, _name)))
    for _name in ("neg", "pos", "abs"):
        _fit(_kind, f"__{_name}__", _unary(getattr(operator, _name)))
    for _name, _function in (("round", round), ("ceil", math.ceil), ("floor", math.floor)):
        _fit(_kind, f"__{_name}__", _unary(_function))
    _fit(_kind, "__trunc__", _unary(math.trunc))
    for _target in (bool, int, float):
        _fit(_kind, f"__{_target.__name__}__", _convert(_target))
