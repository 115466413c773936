"""Quantized modules: `aimet_torch.nn` and `aimet_torch.v2.nn`.

All names of `fxquant.nn` are here: `QuantizedConv2d`, `QuantizationMixin`, `compute_encodings` ...
"""

from __future__ import annotations

from typing import Any

from fxquant.aimet.nn import custom
from fxquant.nn import (
    QuantizationMixin,
    compute_encodings,
    compute_param_encodings,
    generate,
)

BaseQuantizationMixin = QuantizationMixin

__all__ = [
    "BaseQuantizationMixin",
    "QuantizationMixin",
    "compute_encodings",
    "compute_param_encodings",
    "custom",
]


def __getattr__(name: str) -> Any:
    if name.startswith("FakeQuantized"):  # of version 1
        name = name.removeprefix("Fake")
    return generate.by_name(name)
