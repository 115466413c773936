"""What no row knows, as modules: single functions, and islands of complex numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fxquant.quantization.gradients import poles


class Opaque(nn.Module):
    """A function that has no row, as a module: it stays in floating point.

    Args:
        function: what is called; a method of the first argument by its name.
    """

    def __init__(self, function: Callable[..., Any] | str) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        if isinstance(self.function, str):
            return getattr(args[0], self.function)(*args[1:], **kwargs)
        return poles.run(self.function, args, kwargs)

    def extra_repr(self) -> str:
        """The function's name."""
        return self.name

    @property
    def name(self) -> str:
        """What is called, for people."""
        return str(getattr(self.function, "__name__", self.function))


class Complex(nn.Module):
    """Operations on complex numbers as one module; what goes in and comes out is real.

    Args:
        body: the operations.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *args: Any) -> Any:
        """Call them."""
        return self.body(*args)


__all__ = ["Complex", "Opaque"]
