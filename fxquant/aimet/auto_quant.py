"""AutoQuant: `aimet_torch.auto_quant` and `aimet_torch.auto_quant_v2`."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from fxquant.aimet.model_preparer import recorded
from fxquant.auto import auto_quant

__all__ = ["AutoQuant", "AutoQuantWithAutoMixedPrecision"]


class AutoQuant(auto_quant.AutoQuant):
    """`fxquant.AutoQuant`, which takes models that wait for their dummy input."""

    __signature__: ClassVar[inspect.Signature] = inspect.signature(auto_quant.AutoQuant)

    def __init__(self, model: Any, dummy_input: Any, *args: Any, **kwargs: Any) -> None:
        recorded(model, dummy_input)
        super().__init__(model, dummy_input, *args, **kwargs)


class AutoQuantWithAutoMixedPrecision(AutoQuant, auto_quant.AutoQuantWithAutoMixedPrecision):
    """`AutoQuant` that gives layers more bits where all other techniques miss the target."""
