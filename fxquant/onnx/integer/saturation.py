"""Which products of a file can saturate on x86 CPUs without VNNI.

The bounds are those of the pairs that such a CPU adds (`saturating`): of constant weights the pairs
are known, of a computed second operand, such as the keys and values of an attention, only its type
is. The other side goes from zero to the largest integer that its grid and its producer allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fxquant.onnx.integer.kernels.arithmetic import Array
from fxquant.onnx.integer.kernels.kernel_graph import attribute, constant, dtype_of
from fxquant.onnx.integer.kernels.saturating_gemm import bounds, can_saturate, halves, weight_rows

_BYTE = 255
# kernel -> places of its operands as they are multiplied, and of their zero points
_PRODUCTS = {
    "QLinearConv": (0, 3, 2, 5), "QLinearMatMul": (0, 3, 2, 5), "QGemm": (0, 3, 2, 5),
    "MatMulIntegerToFloat": (0, 1, 4, 5), "MatMulInteger": (0, 1, 2, 3),
    "ConvInteger": (1, 0, 3, 2), "DynamicQuantizeMatMul": (0, 1, 0, 3),
}  # fmt: skip
_UP_TO_ONE = frozenset(("Softmax", "Sigmoid", "HardSigmoid"))


@dataclass(frozen=True)
class Saturation:
    """A kernel whose sums can saturate.

    Attributes:
        node: name of the operator.
        channels: output channels with at least one such pair of weights; 0 if `dynamic`.
        of: all output channels; 0 if `dynamic`.
        share: share of such pairs among all pairs.
        peak: largest magnitude of a sum of two products; 32767 fits.
        dynamic: whether the second operand is computed, not a weight.
    """

    node: str
    channels: int
    of: int
    share: float
    peak: int
    dynamic: bool = False


def saturations(graph: ir.Graph) -> tuple[Saturation, ...]:
    """Kernels of a fused graph whose sums can saturate, in graph order."""
    found = (_risk(node) for node in graph)
    return tuple(risk for risk in found if risk is not None)


def _risk(node: ir.Node) -> Saturation | None:
    if node.op_type not in _PRODUCTS:
        return None
    places = _PRODUCTS[node.op_type]
    first, second, *zeros = (node.inputs[i] if i < len(node.inputs) else None for i in places)
    types = [dtype_of(v) or dtype_of(z) for v, z in zip((first, second), zeros, strict=True)]
    # a dynamic quantization makes unsigned bytes of its floats inside
    if first is None or second is None or types[1] is not ir.DataType.INT8:
        return None
    if types[0] is ir.DataType.INT8:
        return None
    largest = _largest(first)
    weight = constant(second)
    return _computed(node, largest) if weight is None else _stored(node, weight, largest)


def _computed(node: ir.Node, largest: int) -> Saturation | None:
    peak = largest * 2 * 128
    if peak <= 2**15:  # the most negative sum that fits
        return None
    return Saturation(str(node.name), 0, 0, 1.0, peak, dynamic=True)


def _stored(node: ir.Node, weight: Array, largest: int) -> Saturation | None:
    rows = _rows(node, weight)
    if rows is None or rows.shape[1] < 2:
        return None
    pairs = halves(rows, 1)
    over = can_saturate(pairs, (largest, largest))
    if not over.any():
        return None
    upper, lower = bounds(pairs, (largest, largest))
    peak = int(np.maximum(upper, -lower).max())
    channels = int(over.any(axis=1).sum())
    return Saturation(str(node.name), channels, len(rows), float(over.mean()), peak)


def _rows(node: ir.Node, weight: Array) -> Array | None:
    """Weights as the kernel multiplies them: [output channels, terms in their order]."""
    if node.op_type in ("QLinearConv", "ConvInteger"):
        depthwise = weight.shape[1] == 1 and attribute(node, "group", 1) == len(weight)
        return None if depthwise and len(weight) > 1 else weight_rows(weight)
    if weight.ndim < 2:
        return None
    if weight.ndim > 2:
        return np.concatenate([w.T for w in weight.reshape(-1, *weight.shape[-2:])])
    return weight if attribute(node, "transB", 0) else np.asarray(weight.T)


def _largest(value: ir.Value) -> int:
    """The largest integer that an activation can be.

    Sigmoid and softmax end at one, and a Clip at its end; else it is the end of the type.
    """
    node = value.producer()
    if node is None or node.op_type != "QuantizeLinear":
        return _BYTE
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    scale, zero = (constant(v) for v in node.inputs[1:3]) if len(node.inputs) > 2 else (None, None)
    end = _end(source)
    if end is None or scale is None or zero is None or scale.size != 1:
        return _BYTE
    return int(np.clip(np.rint(end / float(scale.reshape(()))) + int(zero.reshape(())), 0, _BYTE))


def _end(node: ir.Node | None) -> float | None:
    """The largest number that a node can give."""
    if node is None:
        return None
    if node.op_type in _UP_TO_ONE:
        return 1.0
    high = constant(node.inputs[2]) if node.op_type == "Clip" and len(node.inputs) > 2 else None
    return None if high is None or high.size != 1 else float(high.reshape(()))


def describe(risks: Sequence[Saturation], *, exact: bool) -> str:
    """What a person should know about all risks, with the ways out; empty where there is none.

    Args:
        risks: of one model.
        exact: whether this CPU computes exactly all the same.
    """
    if not risks:
        return ""
    here = "this CPU computes exactly" if exact else "this CPU is one"
    weights, computed = ([r for r in risks if r.dynamic is kind] for kind in (False, True))
    parts = []
    if weights:
        worst = max(weights, key=lambda r: r.share)
        parts.append(f"most in {worst.node}, {worst.share:.2%} of its pairs of weights")
    if computed:
        parts.append(
            f"{len(computed)} multiply two activations, first {computed[0].node}: 7-bit weights "
            "and session.x64quantprecision do not help these"
        )
    ways = 'deploy="avx2" writes uint8 operands, exact on every CPU'
    if not computed:
        ways += (
            "; the session option session.x64quantprecision=1 does the same when the file is "
            'loaded; weights of 7 bits (config="reduce_range") cannot saturate'
        )
    return (
        f"{len(risks)} kernels can saturate on x86 CPUs without VNNI ({here}): "
        f"{'; '.join(parts)}. Ways out: {ways}"
    )
