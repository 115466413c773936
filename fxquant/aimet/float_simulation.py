"""`default_data_type=QuantizationDataType.float`: every grid becomes a cast to float16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fxquant.editing import refresh_biases
from fxquant.nn import QuantizationMixin
from fxquant.quantization.affine import BiasQuantizeDequantize
from fxquant.quantization.float import FloatQuantizeDequantize

if TYPE_CHECKING:
    from torch import fx


def to_float16(gm: fx.GraphModule) -> None:
    """Round to float16 wherever there is a grid; one quantizer for each that there was."""
    made: dict[int, FloatQuantizeDequantize] = {}
    for module in list(gm.modules()):
        if not isinstance(module, QuantizationMixin):
            continue
        for home in (module.input_quantizers, module.output_quantizers, module.param_quantizers):
            for key, old in list(home.active()):
                if isinstance(old, BiasQuantizeDequantize):
                    continue
                if id(old) not in made:
                    made[id(old)] = FloatQuantizeDequantize(dtype=torch.float16)
                    made[id(old)].where = old.where
                home[key] = made[id(old)]  # type: ignore[index]
    refresh_biases(gm)
