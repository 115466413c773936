"""Cross-layer equalization: `aimet_torch.cross_layer_equalization`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant.aimet.model_preparer import recorded
from fxquant.aimet.nn.custom import AbsentError
from fxquant.ptq.cross_layer import equalization

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from fxquant.ptq.cross_layer.equalization import EqualizationReport


# primitives on hand-made lists of layers, which miss what else reads a channel
_PRIMITIVES = frozenset(
    ("ClsSetInfo", "GraphSearchUtils", "HighBiasFold", "equalize_bn_folded_model")
)


def __getattr__(name: str) -> Any:
    if name in _PRIMITIVES:
        what = f"cross_layer_equalization.{name} is not here: the graph tells which layers to scale"
        raise AbsentError("FXQ914", what, fix="call equalize_model(model, input_shapes)")
    what = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(what)


def equalize_model(
    model: nn.Module, input_shapes: Sequence[Any] | None = None, dummy_input: Any = None
) -> EqualizationReport:
    """Fold batch norms and scale layers across; see `fxquant.equalize_model`."""
    recorded(model, dummy_input, input_shapes)
    return equalization.equalize_model(
        model, input_shapes, dummy_input, absorb_high_bias=True, activations=False
    )


class CrossLayerScaling:
    """Scaling layers across, without high biases."""

    @staticmethod
    def scale_model(
        model: nn.Module, input_shapes: Sequence[Any] | None = None, dummy_input: Any = None
    ) -> EqualizationReport:
        """Scale every group of layers that can be scaled; see `fxquant.equalize_model`."""
        recorded(model, dummy_input, input_shapes)
        return equalization.CrossLayerScaling.scale_model(model, input_shapes, dummy_input)
