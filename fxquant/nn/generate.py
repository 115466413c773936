"""`fxquant.nn.Quantized<X>` for every `X` of `torch.nn` and every functional module, on demand."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxquant.errors import nearest
from fxquant.nn import functional, stubs
from fxquant.nn.dense import Dense
from fxquant.nn.mixin import PREFIX, QuantizationMixin, quantized_class


def by_name(name: str) -> type[QuantizationMixin]:
    """The class `Quantized<X>` for a functional module, a stub or a class of `torch.nn`.

    Raises:
        AttributeError: there is no such module class.

    Example:
        >>> by_name("QuantizedConv2d").__mro__[2]
        <class 'torch.nn.modules.conv.Conv2d'>
    """
    wanted = name.removeprefix(PREFIX)
    found: Any = None
    if name.startswith(PREFIX):
        found = functional.CLASSES.get(wanted)
        found = found or getattr(stubs, wanted, None) or getattr(nn, wanted, None)
        found = Dense if wanted == Dense.__name__ else found
    if not _is_module_class(found):
        raise AttributeError(_unknown(name))
    return quantized_class(found)


def _unknown(name: str) -> str:
    text = f"module 'fxquant.nn' has no attribute {name!r}"
    if not name.startswith(PREFIX):
        return text
    torch_classes = [n for n in dir(nn) if _is_module_class(getattr(nn, n))]
    hint = nearest(name, [PREFIX + n for n in (*torch_classes, *functional.CLASSES)])
    return f"{text}; {hint}" if hint else text


def _is_module_class(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)
