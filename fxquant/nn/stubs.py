"""Stubs that mark where a quantized region begins and ends; to the numbers they do nothing."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

_T = TypeVar("_T")


class QuantStub(nn.Module):
    """Begin of a quantized region: returns its input, a tensor or a tuple or list of tensors.

    Where no quantized module produces a tensor (an input of the graph, a constant, a float branch),
    a `QuantizedQuantStub` owns its grid.

    Example:
        >>> QuantStub()((1, 2))
        (1, 2)
    """

    def forward(self, x: _T) -> _T:
        """Return the input."""
        return x


class DeQuantStub(nn.Module):
    """End of a quantized region: returns its input, a tensor or a tuple or list of tensors."""

    def forward(self, x: _T) -> _T:
        """Return the input."""
        return x
