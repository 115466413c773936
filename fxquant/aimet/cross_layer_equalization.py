"""Cross-layer equalization: `aimet_torch.cross_layer_equalization`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant.aimet.model_preparer import recorded
from fxquant.ptq.cross_layer import equalization

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from fxquant.ptq.cross_layer.equalization import EqualizationReport


def equalize_model(
    model: nn.Module, input_shapes: Sequence[Any] | None = None, dummy_input: Any = None
) -> EqualizationReport:
    """Fold batch norms and scale layers across; see `fxquant.equalize_model`."""
    recorded(model, dummy_input, input_shapes)
    return equalization.equalize_model(model, input_shapes, dummy_input, absorb_high_bias=True)
