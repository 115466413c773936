"""Sampling at other positions: interpolate, grid_sample, affine_grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fxquant.onnx.call import Call, UnsupportedError, static_sizes
from fxquant.onnx.emit.registry import emits

if TYPE_CHECKING:
    import onnx_ir as ir

# mode of PyTorch -> mode of ONNX, and how a position is taken without align_corners
_MODES = {
    "nearest": ("nearest", "asymmetric"),
    "nearest-exact": ("nearest", "half_pixel"),
    "linear": ("linear", "half_pixel"),
    "bilinear": ("linear", "half_pixel"),
    "trilinear": ("linear", "half_pixel"),
    "bicubic": ("cubic", "half_pixel"),
}


@emits("interpolate")
def _interpolate(c: Call) -> ir.Value:
    mode, antialias = c.static("mode"), bool(c.static("antialias"))
    if mode not in _MODES or (antialias and c.opset < 18):
        msg = f"interpolation by {mode!r}{' with antialias' if antialias else ''}"
        raise UnsupportedError(msg)
    kind, position = _MODES[mode]
    if c.static("align_corners"):
        position = "align_corners"
    rounding = {"nearest": "floor", "nearest-exact": "round_prefer_ceil"}.get(mode)
    scales, sizes, axes = _extent(c)
    return c.op(
        "Resize", c.tensor(), None, scales, sizes, mode=kind, nearest_mode=rounding,
        coordinate_transformation_mode=position, axes=axes,
        cubic_coeff_a=(-0.5 if antialias else -0.75) if kind == "cubic" else None,
        # PyTorch's antialiased kernel has no weight outside of the image; the plain one repeats it
        antialias=1 if antialias else None,
        exclude_outside=1 if antialias and kind == "cubic" else None,
    )  # fmt: skip


def _extent(c: Call) -> tuple[ir.Value | None, ir.Value | None, list[int] | None]:
    """Scales or sizes of Resize, whichever PyTorch computes positions with."""
    rank = c.spec().rank
    spatial = list(range(2, rank))
    made = c.out.shape[2:]
    factor = c.static("scale_factor")
    if factor is not None and not c.static("recompute_scale_factor"):
        factors = list(factor) if isinstance(factor, (tuple, list)) else [factor] * len(spatial)
        return _scales(c, [float(f) for f in factors]), None, None
    sizes = static_sizes(made, "the result")
    if c.opset >= 18:
        return None, c.builder.vector(sizes), spatial
    given = static_sizes(c.spec().shape[2:], "the input")
    return _scales(c, [_ratio(m, g) for m, g in zip(sizes, given, strict=True)]), None, None


def _ratio(made: int, given: int) -> float:
    """The smallest float32 scale from which the runtime gets `made` again."""
    scale = np.float32(made / given)
    while int(np.float32(given) * scale) < made:
        scale = np.nextafter(scale, np.float32(np.inf))
    return float(scale)


def _scales(c: Call, factors: list[float]) -> ir.Value:
    return c.builder.constant(np.array([1.0, 1.0, *factors], np.float32))


@emits("grid_sample")
def _grid_sample(c: Call) -> ir.Value:
    if c.opset < 16 or (c.opset < 20 and c.spec().rank != 4):
        msg = "GridSample came with opset 16, for volumes with opset 20"
        raise UnsupportedError(msg)
    mode = c.static("mode")
    if c.opset >= 20:
        mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    return c.op(
        "GridSample", c.tensor(), c.value(c["grid"], "grid"), mode=mode,
        padding_mode=c.static("padding_mode"), align_corners=int(bool(c.static("align_corners"))),
    )  # fmt: skip


@emits("affine_grid")
def _affine_grid(c: Call) -> ir.Value:
    """Positions of the result's pixels, times the matrices."""
    *space, n = c.out.shape[1:]
    sizes = static_sizes(space, "the grid")
    base = _base(sizes, bool(c.static("align_corners")), c.spec("theta").dtype)
    turned = c.op("Transpose", c.tensor("theta"), perm=[0, 2, 1])
    points = c.op("MatMul", c.builder.constant(base), turned)
    return c.op("Reshape", points, [-1, *sizes, n])


def _base(sizes: list[int], aligned: bool, dtype: torch.dtype) -> torch.Tensor:
    axes: list[Any] = []
    for size in sizes:
        line = torch.linspace(-1, 1, size, dtype=dtype) if size > 1 else torch.zeros(1, dtype=dtype)
        axes.append(line if aligned else line * ((size - 1) / size))
    grids = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([*reversed(grids), torch.ones_like(grids[0])], -1).reshape(
        -1, len(sizes) + 1
    )
