"""Kernels whose grids follow from the values at hand: quantization while the model runs."""

from __future__ import annotations

import numpy as np

from fxquant.onnx.integer.kernels.arithmetic import F32, Array, quantize
from fxquant.onnx.integer.kernels.gemm import scaled_product
from fxquant.onnx.integer.kernels.registry import KernelCall, UnsupportedError, kernel

_STEPS = F32(255.0)


@kernel("DynamicQuantizeLinear")
def _quantize(c: KernelCall) -> tuple[Array, Array, Array]:
    return _on_own_grid(c.array(0))


def _on_own_grid(x: Array) -> tuple[Array, Array, Array]:
    """uint8 on the grid from the smallest to the largest value and zero: (integers, scale, zero).

    Raises:
        UnsupportedError: there are no values.
    """
    if not x.size:
        msg = "nothing has no range"
        raise UnsupportedError(msg)
    low, high = np.minimum(x.min(), F32(0.0)), np.maximum(x.max(), F32(0.0))
    scale = F32(1.0) if low == high else F32((high - low) / _STEPS)
    zero = np.uint8(np.rint(np.clip(-low / scale, F32(0.0), _STEPS)))
    grid = np.asarray(scale), np.asarray(zero)
    return quantize(x, *grid, np.dtype(np.uint8)), *grid


@kernel("DynamicQuantizeMatMul")
def _matmul(c: KernelCall) -> Array:
    b, b_scale, b_zero = c.array(1), c.array(2), c.optional(3)
    return scaled_product(c, _on_own_grid(c.array(0)), (b, b_scale, b_zero), c.optional(4))
