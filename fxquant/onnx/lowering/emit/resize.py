"""Sampling at other positions: interpolate, grid_sample, affine_grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from fxquant.onnx.lowering.context import Call, UnsupportedError, static_sizes
from fxquant.onnx.lowering.emit.spatial import along_axis
from fxquant.onnx.lowering.emitters import emits

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    unlike_onnx = mode == "area" or (antialias and (c.opset < 18 or c.static("align_corners")))
    if unlike_onnx or _shrinks_cubic(c):
        return _by_matrices(c)
    if mode not in _MODES:
        msg = f"interpolation by {mode!r}"
        raise UnsupportedError(msg)
    kind, position = _MODES[mode]
    if c.static("align_corners"):
        position = "align_corners"
    rounding = {"nearest": "floor", "nearest-exact": "round_prefer_ceil"}.get(mode)
    scales, sizes = _extent(c)
    return c.op(
        "Resize", c.tensor(), None, scales, sizes, mode=kind, nearest_mode=rounding,
        coordinate_transformation_mode=position,
        cubic_coeff_a=(-0.5 if antialias else -0.75) if kind == "cubic" else None,
        # PyTorch's antialiased kernel has no weight outside of the image; the plain one repeats it
        antialias=1 if antialias else None,
        exclude_outside=1 if antialias else None,
    )  # fmt: skip


def _shrinks_cubic(c: Call) -> bool:
    """Whether a bicubic Resize without antialias makes an axis of a known size smaller.

    onnxruntime moves a Resize between convolutions into their layout, channels last, where its
    cubic kernel cannot shrink: the file would load or run at some levels only.
    """
    sizes = [*c.spec().shape[2:], *c.out.shape[2:]]
    if c.static("mode") != "bicubic" or c.static("antialias"):
        return False
    if any(not isinstance(s, int) for s in sizes):
        return False
    factors = _factors(c) or [1.0]
    return min(factors) < 1 or any(m < g for g, m in zip(sizes[:2], sizes[2:], strict=True))


def _by_matrices(c: Call) -> ir.Value:
    """Each axis times the matrix of its weights, which PyTorch gives for the unit matrix.

    ONNX has no "area", before opset 18 no antialias, and takes antialiased weights with
    `align_corners` from other positions than PyTorch; and see `_shrinks_cubic`.
    """
    given = static_sizes(c.spec().shape[2:], "the input")
    made = static_sizes(c.out.shape[2:], "the result")
    factors: Sequence[float | None] = _factors(c) or [None] * len(given)
    weights = [_weights(c, *sizes) for sizes in zip(given, made, factors, strict=True)]
    y, rank = c.tensor(), len(given) + 2
    for i in reversed(range(len(given))):
        y = along_axis(c, y, i + 2, rank, weights[i].T)
    return y


def _weights(c: Call, given: int, made: int, factor: float | None) -> torch.Tensor:
    """What PyTorch weighs the elements of an axis with: `[made, given]`."""
    goal = {"size": [made, given]} if factor is None else {"scale_factor": [factor, 1.0]}
    weights = functional.interpolate(
        torch.eye(given)[None, None], **goal, mode=c.static("mode"),
        align_corners=c.static("align_corners"), antialias=bool(c.static("antialias")),
    )  # fmt: skip
    return weights[0, 0].to(c.spec().dtype)


def _factors(c: Call) -> list[float] | None:
    """Factors that PyTorch computes positions with, None where it uses the sizes."""
    factor = c.static("scale_factor")
    if factor is None or c.static("recompute_scale_factor"):
        return None
    count = c.spec().rank - 2
    given = list(factor) if isinstance(factor, (tuple, list)) else [factor] * count
    return [float(f) for f in given]


def _extent(c: Call) -> tuple[ir.Value | None, ir.Value | None]:
    """Scales or sizes of Resize, whichever PyTorch computes positions with.

    Sizes are given for all axes: onnxruntime's change of layout moves the sizes as if they were,
    and cannot load a Resize whose `axes` name two of four.
    """
    factors = _factors(c)
    if factors is not None:
        return _scales(c, factors), None
    sizes = static_sizes(c.out.shape[2:], "the result")
    held = c.held("input")
    outer = [
        s if isinstance(s, int) else held.size(c.builder, i)
        for i, s in enumerate(held.spec.shape[:2])
    ]
    return None, c.builder.vector([*outer, *sizes])


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
