"""The front door for people who come from AIMET: its documented names over the same parts.

Where a program says `aimet_torch` or `aimet_common` it says `fxquant.aimet`, and nothing else
changes. What AIMET documents and is not here is an error that says why and what to do instead.
"""

from fxquant.aimet import nn, onnx, quantization, spellings
from fxquant.aimet.quantsim import QuantizationSimModel

spellings.install()

__all__ = ["QuantizationSimModel", "nn", "onnx", "quantization"]
