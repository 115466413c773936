"""Range learning as the default, as it is in AIMET since version 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant.nn import QuantizationMixin
from fxquant.quantization import QuantScheme
from fxquant.quantization.affine import QuantizeDequantize
from fxquant.targets.quantizer_choice import set_training

if TYPE_CHECKING:
    from torch import fx

    from fxquant.targets.quantizer_choice import Role


def learn_ranges(gm: fx.GraphModule) -> None:
    """Let an optimizer move the ranges of activations and weights."""
    scheme = QuantScheme.training_range_learning_with_tf_init
    for module in gm.modules():
        if not isinstance(module, QuantizationMixin):
            continue
        for home in (module.input_quantizers, module.output_quantizers, module.param_quantizers):
            role: Role = "weight" if home is module.param_quantizers else "activation"
            for _, quantizer in home.active():
                if isinstance(quantizer, QuantizeDequantize):
                    set_training(quantizer, role, scheme)
