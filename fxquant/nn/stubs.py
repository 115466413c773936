"""Stubs that mark where a quantized region begins and ends; to the numbers they do nothing."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

_T = TypeVar("_T")


class QuantStub(nn.Module):
    """Begin of a quantized region: returns its input, a tensor or a tuple, list or dict of them.

    Where no quantized module produces a tensor (an input of the graph, a constant, a float branch),
    a `QuantizedQuantStub` owns its grid.

    Attributes:
        inserted: whether `insert_stubs` put it there.
        placed: whether the placement put it there, to own a grid.

    Example:
        >>> QuantStub()((1, 2))
        (1, 2)
    """

    inserted: bool = False
    placed: bool = False

    def forward(self, x: _T) -> _T:
        """Return the input."""
        passed: _T = _passed(x)
        return passed


class DeQuantStub(nn.Module):
    """End of a quantized region: returns its input, a tensor or a tuple, list or dict of them.

    Attributes:
        inserted: whether `insert_stubs` put it there.
    """

    inserted: bool = False

    def forward(self, x: _T) -> _T:
        """Return the input."""
        passed: _T = _passed(x)
        return passed


def _passed(value: Any) -> Any:
    """The same tensors as new objects.

    A recording tells values apart by their tensors: in `d(conv(q(x))) + x` the last `x` is not what
    the stub returned.
    """
    if isinstance(value, Tensor):
        return value.view_as(value)
    if isinstance(value, dict):
        return {key: _passed(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_passed(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
