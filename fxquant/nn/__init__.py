"""Quantized modules, functional modules and stubs.

`QuantizedConv2d`, `QuantizedAdd` and so on are made when they are first asked for, from the classes
of `torch.nn` and from the functional modules here.
"""

from typing import Any

from fxquant.nn import functional
from fxquant.nn.calibration import compute_encodings, compute_param_encodings
from fxquant.nn.functional import *  # noqa: F403  # one class a function, listed there
from fxquant.nn.generate import by_name
from fxquant.nn.mixin import QuantizationMixin, implements, quantized_class
from fxquant.nn.stubs import DeQuantStub, QuantStub

__all__ = [
    "DeQuantStub",
    "QuantStub",
    "QuantizationMixin",
    "compute_encodings",
    "compute_param_encodings",
    "implements",
    "quantized_class",
]
__all__ += functional.__all__


def __getattr__(name: str) -> Any:
    return by_name(name)
