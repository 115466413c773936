"""`default_data_type=QuantizationDataType.float`: every grid becomes a cast to float16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fxquant.editing import refresh_biases
from fxquant.nn.quantizer_places import quantizer_places
from fxquant.quantization.affine import BiasQuantizeDequantize
from fxquant.quantization.float import FloatQuantizeDequantize

if TYPE_CHECKING:
    from torch import fx


def to_float16(gm: fx.GraphModule) -> None:
    """Round to float16 wherever there is a grid; one quantizer for each that there was."""
    made: dict[int, FloatQuantizeDequantize] = {}
    for place in quantizer_places(gm):
        old = place.quantizer
        if isinstance(old, BiasQuantizeDequantize):
            continue
        if id(old) not in made:
            made[id(old)] = FloatQuantizeDequantize(dtype=torch.float16)
            made[id(old)].where = old.where
        place.put(made[id(old)])
    refresh_biases(gm)
