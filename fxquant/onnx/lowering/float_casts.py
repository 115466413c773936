"""Narrow floating-point formats: float16 and bfloat16 by Cast, 8-bit ones divided by a scale first.

Not as QuantizeLinear to a float type: onnxruntime fuses such pairs into kernels that it does not
have, and then refuses the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
from torch import Tensor

from fxquant.errors import ExportError, UncalibratedError
from fxquant.onnx.lowering.builder import Builder, data_type

if TYPE_CHECKING:
    from fxquant.onnx.runs.observed import Shaped
    from fxquant.quantization import FloatEncoding, QuantizerBase
    from fxquant.quantization.float import FloatQuantizeDequantize

_FLOAT8_SINCE = 19  # opset of Cast


def narrowed(
    builder: Builder, real: ir.Value, quantizer: FloatQuantizeDequantize, spec: Shaped, name: str
) -> ir.Value:
    """An activation in a narrow format and back.

    Raises:
        UncalibratedError: FXQ546, the format needs a scale that is not known.
        ExportError: FXQ528, the opset does not have the format.
    """
    encoding = _encoding(quantizer, builder.opset)
    if encoding.scale is None:
        narrow = _named(builder, builder.op("Cast", real, to=data_type(encoding.dtype)), name)
        return _named(builder, builder.op("Cast", narrow, to=data_type(spec.dtype)), name, "wide")
    rank, scale = len(spec.shape), encoding.scale.detach().float()
    scale = scale.reshape((1,) * max(0, rank - scale.dim()) + tuple(scale.shape))
    step = builder.constant(scale if scale.numel() > 1 else scale.reshape(()))
    largest = float(torch.finfo(encoding.dtype).max)
    ratio = builder.op("Div", real, step)
    ratio = builder.op("Clip", ratio, builder.constant(-largest), builder.constant(largest))
    narrow = _named(builder, builder.op("Cast", ratio, to=data_type(encoding.dtype)), name)
    wide = _named(builder, builder.op("Cast", narrow, to=data_type(spec.dtype)), name, "wide")
    return builder.op("Mul", wide, step)


def narrow_weight(
    builder: Builder,
    tensor: Tensor,
    name: str,
    quantizer: FloatQuantizeDequantize,
    arranged: Callable[[Tensor], Tensor],
) -> ir.Value:
    """A weight stored in a narrow format; errors as in `narrowed`.

    Args:
        builder: where nodes go.
        tensor: the parameter.
        name: its name.
        quantizer: its quantizer.
        arranged: gives the layout that ONNX stores.
    """
    encoding = _encoding(quantizer, builder.opset)
    x = tensor.detach().float()
    if encoding.scale is None:
        stored = builder.constant(arranged(x).to(encoding.dtype), name)
        return builder.op("Cast", stored, to=ir.DataType.FLOAT)
    scale = encoding.scale.detach().float()
    largest = torch.finfo(encoding.dtype).max
    narrow = (x / scale).clamp(-largest, largest).to(encoding.dtype)
    stored = builder.constant(arranged(narrow.float()).to(encoding.dtype), name)
    scale = arranged(scale.expand(x.shape)) if scale.numel() > 1 else scale.reshape(())
    wide = builder.op("Cast", stored, to=ir.DataType.FLOAT)
    return builder.op("Mul", wide, builder.constant(scale, f"{name}_scale"))


def require_float32(dtype: torch.dtype, name: str, quantizer: QuantizerBase) -> None:
    """Refuse what integer kernels cannot be written for.

    Args:
        dtype: of the real values.
        name: of the tensor.
        quantizer: on whose grid it lies.

    Raises:
        ExportError: FXQ549, they are not float32.
    """
    if dtype is not torch.float32:
        what = f"the quantized value {name} is {dtype}: integer kernels take float32"
        fix = "build the simulation from model.float() and float32 inputs"
        raise ExportError("FXQ549", what, at=quantizer.where, fix=fix)


def _encoding(quantizer: FloatQuantizeDequantize, opset: int) -> FloatEncoding:
    encoding, where = quantizer.get_encodings(), quantizer.where
    if encoding is None:
        fix = "run sim.compute_encodings(...) with data before exporting"
        raise UncalibratedError("FXQ546", f"{where or 'a quantizer'} has no range", fix=fix)
    if encoding.scale is not None and opset < _FLOAT8_SINCE:
        what, fix = f"opset {opset} has no 8-bit floats", f"use opset {_FLOAT8_SINCE} or later"
        raise ExportError("FXQ528", what, at=where, fix=fix)
    return encoding


def _named(builder: Builder, value: ir.Value, name: str, label: str = "narrow") -> ir.Value:
    producer = value.producer()
    if producer is not None:
        builder.name_node(producer, f"{name}_{label}")
    return value
