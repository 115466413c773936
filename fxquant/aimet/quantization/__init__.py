"""Quantizers, encodings and tensors: `import fxquant.aimet.quantization as Q`."""

from typing import Any

from fxquant.aimet.nn.custom import AbsentError
from fxquant.aimet.quantization import affine, base, encoding_analyzer, float, tensor
from fxquant.aimet.quantization.tensor import (
    DequantizedTensor,
    EncodingError,
    QuantizedTensor,
    QuantizedTensorBase,
)

__all__ = [
    "DequantizedTensor",
    "EncodingError",
    "QuantizedTensor",
    "QuantizedTensorBase",
    "affine",
    "base",
    "encoding_analyzer",
    "float",
    "tensor",
]


def __getattr__(name: str) -> Any:
    if name in ("add_backend", "get_backend", "set_backend"):
        what = f"quantization.{name} is not here: there is one arithmetic, that of the runtime"
        raise AbsentError("FXQ915", what, fix="leave it out; torch.compile(sim.model) is faster")
    what = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(what)
