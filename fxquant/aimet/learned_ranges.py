"""Range learning as the default, as it is in AIMET since version 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant.nn.quantizer_places import quantizer_places
from fxquant.quantization import QuantScheme
from fxquant.quantization.affine import QuantizeDequantize
from fxquant.targets.quantizer_choice import set_training

if TYPE_CHECKING:
    from torch import fx

    from fxquant.targets.quantizer_choice import Role


def learn_ranges(gm: fx.GraphModule) -> None:
    """Let an optimizer move the ranges of activations and weights."""
    scheme = QuantScheme.training_range_learning_with_tf_init
    for place in quantizer_places(gm):
        if isinstance(place.quantizer, QuantizeDequantize):
            role: Role = "weight" if place.role == "param" else "activation"
            set_training(place.quantizer, role, scheme)
