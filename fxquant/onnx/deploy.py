"""The CPUs that a file is written for: the same integers, in the form that these compute exactly.

x86 CPUs without VNNI add products of an unsigned and a signed byte in 16 bits, which saturate, and
lose accuracy silently. CPUs with VNNI and ARM CPUs compute exactly, and x86 CPUs with VNNI have no
fast kernel for two unsigned bytes (a product takes twice as long). Hence:

- `any`: int8 weights, the fastest form wherever it is exact. No two products share a weight, so
  that `session.x64quantprecision=1` makes the file exact on CPUs without VNNI, but for products of
  two activations. The report of an export says what is lost there without the option.
- `avx2`: uint8 weights and operands, exact everywhere; as fast as int8 on CPUs without VNNI.
- `vnni`, `arm`: int8 weights, stored once whoever shares them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from fxquant.errors import ExportError
from fxquant.onnx.read import weight_bytes
from fxquant.onnx.unshare import unshare_weights
from fxquant.onnx.unsigned import SHIFT, make_unsigned
from fxquant.targets import DEPLOYMENTS

if TYPE_CHECKING:
    from fxquant.onnx.lowered import Lowered, LoweredTensor
    from fxquant.targets import Deploy

_NOTED = 0.05  # share of a model's weights from which copies are worth a word


def written_for(lowered: Lowered, deploy: Deploy) -> Lowered:
    """A lowering in the form that suits the CPUs it is deployed on.

    Args:
        lowered: a lowering with int8 weights; its model is changed in place.
        deploy: "any", "vnni", "avx2" or "arm".

    Raises:
        ExportError: FXQ586, there is no such deployment.
    """
    if deploy not in DEPLOYMENTS:
        what = f"deploy={deploy!r} is unknown"
        raise ExportError("FXQ586", what, fix=f"use one of {', '.join(DEPLOYMENTS)}")
    lowered = dataclasses.replace(lowered, deploy=deploy)
    if deploy == "avx2":
        return unsigned(lowered)
    if deploy == "any":
        return _unshared(lowered)
    return lowered


def unsigned(lowered: Lowered) -> Lowered:
    """A lowering whose products multiply unsigned bytes; its model is changed in place."""
    names = make_unsigned(lowered.model.graph)
    tensors = tuple(_shifted(t) if t.quantized_name in names else t for t in lowered.tensors)
    return dataclasses.replace(lowered, tensors=tensors)


def _shifted(tensor: LoweredTensor) -> LoweredTensor:
    zero = (tensor.zero_point.astype(np.int16) + SHIFT).astype(np.uint8)
    return dataclasses.replace(tensor, zero_point=zero, dtype=ir.DataType.UINT8)


def _unshared(lowered: Lowered) -> Lowered:
    before = weight_bytes(lowered.model)
    added = unshare_weights(lowered.model.graph)
    if added <= _NOTED * before:
        return lowered
    note = (
        f"weights that several products share are stored once for each, {added} bytes more, so "
        'that session.x64quantprecision works; deploy="vnni", "arm" or "avx2" stores them once'
    )
    return dataclasses.replace(lowered, notes=(*lowered.notes, note))
