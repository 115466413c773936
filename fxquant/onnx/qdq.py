"""What a QDQ pattern is: which operators only move values, and what Q and DQ nodes say.

The sets differ because their readers ask different questions; each says which.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from fxquant.onnx.qparams import type_range

# operators whose results count things and are never rounded
COUNTS = frozenset(("Shape", "Size", "ArgMax", "ArgMin", "NonZero"))


def grid_range(node: ir.Node) -> tuple[int, int]:
    """Smallest and largest integer of a Q or DQ node."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    dtype = zero.const_value.dtype if zero is not None and zero.const_value is not None else None
    return type_range(dtype or ir.DataType.UINT8)


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The array of an initializer or Constant node, or None."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def dequantized(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The float array behind a constant: an initializer, or DequantizeLinear of integers."""
    found = constant(value)
    if found is not None or value is None:
        return found
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
    if integers is None or scale is None:
        return None
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    spread = _spread(node, scale, integers.shape)
    shift = 0.0 if zero is None else _spread(node, zero, integers.shape).astype(np.float32)
    return np.asarray((integers.astype(np.float32) - shift) * spread)


def _spread(
    node: ir.Node, value: np.ndarray[Any, Any], shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Scale or zero point per tensor, axis or block, as it broadcasts against the tensor."""
    if value.size == 1:
        return value.reshape(())
    axis = node.attributes.get_int("axis", 1) % len(shape)
    if value.ndim == 1:
        return value.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    block = node.attributes.get_int("block_size", 0)
    return np.repeat(value, block, axis=axis).take(range(shape[axis]), axis=axis)
