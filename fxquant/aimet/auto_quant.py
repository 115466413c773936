"""AutoQuant: `aimet_torch.auto_quant` and `aimet_torch.auto_quant_v2`."""

from __future__ import annotations

from fxquant.auto.auto_quant import AutoQuant, AutoQuantWithAutoMixedPrecision

__all__ = ["AutoQuant", "AutoQuantWithAutoMixedPrecision"]
