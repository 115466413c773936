"""Where weights can overflow 16 bits on x86 CPUs without VNNI.

Their integer kernels add two neighbouring products of an unsigned and a signed byte in 16 bits
that saturate: 255·127 + 255·127 does not fit. Weights of 7 bits (the preset
`reduce_range`) always do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fxquant.onnx.integer.arithmetic import Array
from fxquant.onnx.integer.graph import attribute, constant, dtype_of

_MOST = 32767
_ACTIVATION = 255


@dataclass(frozen=True)
class Saturation:
    """A kernel whose weights can saturate.

    Attributes:
        node: name of the operator.
        channels: output channels with at least one such pair of weights.
        of: all output channels.
        share: share of such pairs among all pairs.
        peak: largest sum of two products, for activations of 255; 32767 fits.
    """

    node: str
    channels: int
    of: int
    share: float
    peak: int


def saturations(graph: ir.Graph) -> tuple[Saturation, ...]:
    """Kernels of a fused graph whose weights can saturate, in graph order."""
    found = (_risk(node) for node in graph)
    return tuple(risk for risk in found if risk is not None)


def _risk(node: ir.Node) -> Saturation | None:
    rows = _rows(node)
    if rows is None or rows.shape[1] < 2:
        return None
    wide = rows[:, : rows.shape[1] // 2 * 2].astype(np.int32)
    first, second = wide[:, 0::2], wide[:, 1::2]
    upper = np.maximum(first, 0) + np.maximum(second, 0)
    lower = np.minimum(first, 0) + np.minimum(second, 0)
    sums = _ACTIVATION * np.maximum(upper, -lower)
    over = sums > _MOST
    if not over.any():
        return None
    channels = int(over.any(axis=1).sum())
    return Saturation(str(node.name), channels, len(rows), float(over.mean()), int(sums.max()))


def _rows(node: ir.Node) -> Array | None:
    """Signed weights as the kernel multiplies them: [output channels, terms in their order]."""
    if node.op_type == "QLinearConv":
        weight = _signed(node, 3)
        if weight is None or attribute(node, "group", 1) == weight.shape[0]:
            return None  # depthwise kernels multiply in 32 bits
        return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    if node.op_type in ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat"):
        weight = _signed(node, 1 if node.op_type == "MatMulIntegerToFloat" else 3)
        if weight is None or weight.ndim != 2:
            return None
        return weight if attribute(node, "transB", 0) else weight.T
    return None


def _signed(node: ir.Node, index: int) -> Array | None:
    weight = constant(node.inputs[index])
    if weight is None or weight.dtype != np.int8 or dtype_of(node.inputs[0]) is ir.DataType.INT8:
        return None
    return weight


def describe(risks: Sequence[Saturation], vnni: bool | None) -> str:
    """One sentence on all risks; empty where there is none.

    Args:
        risks: of one model.
        vnni: whether this CPU has VNNI; None if unknown.
    """
    if not risks:
        return ""
    worst = max(risks, key=lambda r: r.share)
    here = {True: "has it", False: "lacks it", None: "is unknown"}[vnni]
    return (
        f"{len(risks)} kernels can saturate on x86 CPUs without VNNI (this CPU {here}), most in "
        f"{worst.node}: {worst.share:.2%} of its pairs of weights. Weights of 7 bits cannot: "
        f'config="reduce_range"'
    )


def cpu_has_vnni() -> bool | None:
    """Whether this CPU multiplies bytes without saturation; None where it cannot be found out."""
    info = Path("/proc/cpuinfo")
    try:
        text = info.read_text(encoding="utf-8")
    except OSError:  # not Linux
        return None
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return "vnni" in flags if flags else None
