"""What a model keeps in Python from one run to the next: counters, lists, flags.

PyTorch knows of parameters and buffers only. A graph holds such a number as it was, so whoever
compares a graph with its model has to know whether a run of the model changed any.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_VALUES = (bool, int, float, complex, str, bytes, type(None))
# without a state that a run of a model could change
_FIXED = (
    type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_KINDS = frozenset((*_VALUES, *_FIXED))
_COLLECTIONS = frozenset((dict, list, tuple, set, frozenset, OrderedDict))
_COMMON = ("__reduce__", "__reduce_ex__")


def per_class(question: Callable[[type], bool]) -> Callable[[type], bool]:
    """Ask only once of each class, as long as it is there: graph modules have each one of its own.

    Example:
        >>> asked = []
        >>> named = per_class(lambda kind: asked.append(kind) is None)
        >>> named(int), named(int), len(asked)
        (True, True, 1)
    """
    known: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()

    @functools.wraps(question)
    def answer(kind: type) -> bool:
        found = known.get(kind)
        if found is None:
            found = known[kind] = question(kind)
        return found

    return answer


def state_of_python(root: Any) -> list[Any] | None:
    """Everything that can be reached from an object, to be compared by `unchanged`.

    Args:
        root: a model.

    Returns:
        The parts in the order of a walk; None where one of them may hide a state, as a generator
        of random numbers does.
    """
    found: list[Any] = [root]
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if type(part) in _KINDS or id(part) in seen or isinstance(part, _FIXED):
            continue
        seen.add(id(part))
        inside = _inside(part)
        if inside is None:
            return None
        found += inside
        waiting += [
            p for p in inside if (p if type(p) in _COLLECTIONS else type(p) not in _KINDS)
        ]  # in what is empty there is nothing, and most dictionaries of a module are
    return found


def _inside(part: Any) -> list[Any] | None:
    if isinstance(part, Tensor):
        return [*vars(part).values(), version_of(part)]
    kind = type(part)
    own = [] if kind in (dict, list, tuple, set, frozenset) else _attributes(part, kind)
    if own is None:
        return None
    if isinstance(part, dict):
        return [*own, *part.keys(), *part.values()]
    return [*own, *part] if isinstance(part, list | tuple | set | frozenset) else own


def _attributes(part: Any, kind: type) -> list[Any] | None:
    """The attributes of an object; None if it has, or may have, more than these."""
    if isinstance(part, dict | list | tuple | set | frozenset):
        return list(getattr(part, "__dict__", {}).values())
    if not _is_open(kind):
        return None
    return list(vars(part).values()) if hasattr(part, "__dict__") else None


@per_class
def _is_open(kind: type) -> bool:
    """Whether objects of a class have their attributes as all of their state."""
    slots = any(getattr(base, "__slots__", ()) for base in kind.__mro__)
    return not slots and all(getattr(kind, n) is getattr(object, n) for n in _COMMON)


def unchanged(before: list[Any] | None, after: list[Any] | None) -> bool:
    """Whether two states of an object are the same objects with the same values.

    Example:
        >>> counter = {"runs": 1, "seen": []}
        >>> before = state_of_python(counter)
        >>> counter["seen"].append(2)
        >>> unchanged(before, state_of_python(counter))
        False
    """
    if before is None or after is None or len(before) != len(after):
        return False
    return all(
        a is b or (type(a) is type(b) and isinstance(a, _VALUES) and a == b)
        for a, b in zip(before, after, strict=True)
    )


def holds_nothing(value: Any) -> bool:
    """Whether a value holds no tensor, by a look at its class: most attributes of modules do not.

    >>> holds_nothing({}), holds_nothing([0])
    (True, False)
    """
    return not value if type(value) in _COLLECTIONS else type(value) in _KINDS


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version
