"""QuantAnalyzer: `aimet_torch.quant_analyzer`."""

from __future__ import annotations

from typing import Any

import fxquant
from fxquant.aimet.defs import CallbackFunc

__all__ = ["CallbackFunc"]


def __getattr__(name: str) -> Any:
    if name == "QuantAnalyzer":
        return fxquant.__getattr__(name)
    what = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(what)
