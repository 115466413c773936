"""A recorded call as the rules about sizes see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxquant.graph.sizes import Change, Tracked

Dims: TypeAlias = tuple[Change, ...]
NEVER = Change.NEVER


@dataclass(frozen=True)
class Call:
    """A recorded call as the rules see it.

    Attributes:
        name: plain name of the function, method or module class.
        args: arguments, with tracked numbers.
        kwargs: keyword arguments.
        lookup: dims of a tensor.
        sized: the largest change among the numbers given.
        known: all tensors of the call with their dims.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    lookup: Callable[[Tensor], Dims]
    sized: Change
    known: list[tuple[Tensor, Dims]]

    def get(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    def tensor(self, index: int, name: str) -> Tensor:
        """A tensor argument; ``LookupError`` if there is none."""
        value = self.get(index, name)
        if isinstance(value, Tensor):
            return value
        raise LookupError(name)

    @property
    def first(self) -> Tensor:
        """The tensor that the call is about."""
        return self.known[0][0]

    @property
    def dims(self) -> Dims:
        """Its dims."""
        return self.known[0][1]

    def sizes(self, index: int, *names: str) -> list[Any]:
        """Sizes given one by one or as one sequence, from a position on."""
        given: list[Any] = list(self.args[index:])
        for name in names:
            given += [self.kwargs[name]] if name in self.kwargs else []
        if given and isinstance(given[0], tuple | list):
            given = list(given[0])
        return [v for v in given if isinstance(v, int)]


def change_of(value: Any) -> Change:
    """What can change a number."""
    return value.trail.change if isinstance(value, Tracked) else NEVER


def largest(call: Call, out: Tensor) -> Dims:
    most = max((change for _, dims in call.known for change in dims), default=NEVER)
    return (max(most, call.sized),) * out.dim()


def broadcast(call: Call, out: Tensor) -> Dims:
    """Element-wise: every input broadcasts to the result, and one has its shape."""
    shapes = [t.shape for t, _ in call.known]
    if out.shape not in shapes or not all(_fits(s, out.shape) for s in shapes):
        return largest(call, out)
    found = []
    for back in range(out.dim(), 0, -1):
        here = [(t.shape[-back], d[-back]) for t, d in call.known if t.dim() >= back]
        fixed = any(size == out.shape[-back] != 1 and not change for size, change in here)
        found.append(NEVER if fixed else max(change for _, change in here))
    return tuple(found)


def _fits(shape: torch.Size, wide: torch.Size) -> bool:
    if len(shape) > len(wide):
        return False
    pairs = zip(reversed(shape), reversed(wide), strict=False)
    return all(a in (1, b) for a, b in pairs)
