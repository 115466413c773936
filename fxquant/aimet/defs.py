"""Enumerations and callbacks: `aimet_common.defs` and `aimet_torch.common.defs`."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from fxquant.quantization import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CallbackFunc", "QuantScheme", "QuantizationDataType"]


class QuantizationDataType(Enum):
    """What the numbers of a quantized tensor are."""

    undefined = 0
    int = 1
    float = 2


class CallbackFunc:
    """A function of the model, with its second argument.

    Args:
        func: `func(model, func_callback_args)`.
        func_callback_args: handed on as it is.

    Example:
        >>> CallbackFunc(lambda model, samples: model * samples, 3)(2)
        6
    """

    def __init__(self, func: Callable[..., Any], func_callback_args: Any = None) -> None:
        self.func = func
        self.args = func_callback_args

    def __call__(self, arg: Any) -> Any:
        return self.func(arg, self.args)
