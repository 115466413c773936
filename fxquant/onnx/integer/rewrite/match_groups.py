"""Which operators onnxruntime runs in integer kernels: its conditions on x86, group by group.

A group is an operator with the DequantizeLinear nodes of its operands and the QuantizeLinear nodes
of its results. An activation between the operator and its quantizer belongs to the group when the
quantizer cuts off all that it would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fxquant.onnx.integer.kernels.kernel_graph import (
    BYTES,
    WORDS,
    NodeQuantParams,
    attribute,
    constant,
    consumers,
    grid_of,
    integers_of,
    is_dequantize,
    is_quantize,
    only_consumer,
    present,
)
from fxquant.onnx.qdq import Trait, operators
from fxquant.onnx.qparams import are_columns

_BIAS_TOLERANCE = 0.01  # of the bias's scale, which Conv checks and Gemm does not


@dataclass(frozen=True)
class Group:
    """Nodes that become one kernel.

    Attributes:
        node: the operator.
        dequantizers: in front of its operands, in their order.
        quantizers: behind its results, in their order.
        activation: the Relu or Clip that vanishes.
    """

    node: ir.Node
    dequantizers: tuple[ir.Node, ...]
    quantizers: tuple[ir.Node, ...]
    activation: ir.Node | None = None

    @property
    def inputs(self) -> list[ir.DataType | None]:
        """Integer types of the operands."""
        return [integers_of(n) for n in self.dequantizers]

    @property
    def outputs(self) -> list[ir.DataType | None]:
        """Integer types of the results."""
        return [integers_of(n) for n in self.quantizers]


def select(node: ir.Node) -> tuple[str, Group] | None:
    """Name of the kernel and the group of an operator, or None where it stays as it is.

    The name is that of an onnxruntime operator, or "drop" where the operator itself then moves
    integers.
    """
    rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    group = _group(node) if rule is not None else None
    if rule is None or group is None:
        return None
    kernel = rule(group)
    return (kernel, group) if kernel else None


def _group(node: ir.Node) -> Group | None:
    sources = [v.producer() for v in node.inputs if v is not None]
    dequantizers = tuple(s for s in sources if s is not None and is_dequantize(s))
    activation = _activation(node)
    last = node if activation is None else activation
    behind = [r for v in last.outputs for r in consumers(v) if is_quantize(r)]
    if activation is not None and (len(behind) != 1 or not drops_activation(activation, behind[0])):
        return None
    return Group(node, dequantizers, tuple(behind), activation)


def _activation(node: ir.Node) -> ir.Node | None:
    uses = [r for v in node.outputs for r in consumers(v)]
    if len(uses) != 1 or uses[0].op_type not in ("Relu", "Clip"):
        return None
    consumer = uses[0]
    return consumer if only_consumer(consumer.outputs[0]) is not None else None


# --- activations --------------------------------------------------------------------------------


def drops_activation(node: ir.Node, quantize: ir.Node) -> bool:
    """Whether the quantizer behind a Relu or Clip cuts off all that it would."""
    grid = grid_of(quantize)
    if grid is None or not grid.single or consumers(node.outputs[0]) != [quantize]:
        return False
    if grid.dtype not in (
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT16,
        ir.DataType.UINT16,
    ):
        return False
    info = np.iinfo(grid.dtype.numpy())
    zero, scale = int(grid.zero.item()), np.float32(grid.scale.item())
    if node.op_type == "Relu":
        return zero == info.min
    low, high = clip_bounds(node)
    if low is None or high is None:
        return False
    bottom, top = np.rint(np.float32(low) / scale), np.rint(np.float32(high) / scale)
    return bool(_as_int(bottom) + zero <= info.min and _as_int(top) + zero >= info.max)


def _as_int(x: np.floating[Any]) -> int:
    return int(np.clip(x, -(2.0**31), 2.0**31 - 1))


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Constant bounds of a Clip; None where one is computed."""
    found: list[float | None] = []
    for i, (name, default) in enumerate((("min", np.finfo(np.float32).min),
                                         ("max", np.finfo(np.float32).max)), 1):  # fmt: skip
        value = node.inputs[i] if len(node.inputs) > i else None
        array = constant(value)
        if value is None or value.name == "":
            found.append(float(attribute(node, name, default)))
        else:
            found.append(None if array is None else float(array.reshape(-1)[0]))
    return found[0], found[1]


# --- conditions ----------------------------------------------------------------------------------


def _is_whole(group: Group, operands: int | None = None, *, bare: bool = False) -> bool:
    """Every operand dequantized, every result quantized and read by nothing else.

    Args:
        group: the group.
        operands: how many operands must be dequantized; default: all.
        bare: whether a group without quantizers will do.
    """
    wanted = len(present(group.node.inputs)) if operands is None else operands
    if len(group.dequantizers) != wanted or not _is_private(group):
        return False
    if not group.quantizers:
        return bare
    results = present(group.node.outputs)
    edges = sum(len(v.uses()) for v in results)
    if any(v.is_graph_output() for v in results):
        return False
    return len(results) == len(group.quantizers) == edges


def _is_private(group: Group) -> bool:
    """Whether the operator is the only consumer of its operands."""
    return all(only_consumer(d.outputs[0]) is group.node for d in group.dequantizers)


def _grids(group: Group) -> tuple[NodeQuantParams | None, NodeQuantParams | None]:
    return grid_of(group.dequantizers[0]), grid_of(group.quantizers[0])


def _scalars(group: Group, count: int | None = None) -> bool:
    """Whether activations lie on constant grids per tensor."""
    nodes = [*group.dequantizers[:count], *group.quantizers]
    grids = [grid_of(n) for n in nodes]
    return all(g is not None and g.single for g in grids)


def _dropping(*, words: bool, positive: bool = False) -> Callable[[Group], str]:
    """Operators that only move or choose values: same grid on both sides."""

    def rule(group: Group) -> str:
        if group.activation is not None or not _is_whole(group, 1):
            return ""
        before, after = _grids(group)
        dtype = group.inputs[0]
        if before is None or after is None or dtype is not group.outputs[0]:
            return ""
        if not words and dtype in WORDS:
            return ""
        if positive and not float(after.scale.reshape(-1)[0]) > 0:
            return ""
        return "drop" if after.equals(before) else ""

    return rule


def _resize(group: Group) -> str:
    nearest = attribute(group.node, "mode", "nearest") == "nearest"
    return _dropping(words=False)(group) if nearest else ""


def _split(group: Group) -> str:
    if group.activation is not None or not _is_whole(group, 1):
        return ""
    before = grid_of(group.dequantizers[0])
    after = [grid_of(q) for q in group.quantizers]
    return "drop" if before and all(g is not None and g.equals(before) for g in after) else ""


def _argmax(group: Group) -> str:
    if len(group.dequantizers) != 1 or not _is_private(group) or group.activation is not None:
        return ""
    grid = grid_of(group.dequantizers[0])
    good = grid is not None and grid.single and grid.explicit and group.inputs[0] in BYTES
    return "drop" if good else ""


def _unary(group: Group) -> str:
    good = _is_whole(group, 1) and group.inputs[0] is group.outputs[0]
    return f"QLinear{group.node.op_type}" if good and _bytes(group) else ""


def _bytes(group: Group) -> bool:
    return group.inputs[0] in BYTES and _scalars(group)


def _all_alike(group: Group) -> bool:
    return len({*group.inputs, *group.outputs}) == 1 and _bytes(group)


def _binary(group: Group) -> str:
    good = _is_whole(group) and _all_alike(group)
    return f"QLinear{group.node.op_type}" if good else ""


def _concat(group: Group) -> str:
    return "QLinearConcat" if _is_whole(group) and _all_alike(group) else ""


def _where(group: Group) -> str:
    return "QLinearWhere" if _is_whole(group, 2) and _all_alike(group) else ""


def _conv(group: Group) -> str:
    if not _is_whole(group) or len(group.dequantizers) < 2 or not group.quantizers:
        return ""
    x, weight = group.inputs[:2]
    if x is not ir.DataType.UINT8 or weight not in BYTES or group.outputs[0] is not x:
        return ""
    if not _scalars(group, 1) or not _plain_weight(group):
        return ""
    return "QLinearConv" if len(group.inputs) < 3 or _conv_bias(group) else ""


def _plain_weight(group: Group) -> bool:
    """A weight with a scale per tensor or channel."""
    grid = grid_of(group.dequantizers[1])
    return grid is not None and grid.scale.ndim <= 1


def _columns(group: Group) -> bool:
    """A weight of several matrices with a scale for each of their columns."""
    node = group.dequantizers[1]
    grid = grid_of(node)
    return grid is not None and are_columns(grid.scale.shape, attribute(node, "axis", 1))


def _conv_bias(group: Group) -> bool:
    if group.inputs[2] is not ir.DataType.INT32:
        return False
    x, w, b = (grid_of(n) for n in group.dequantizers)
    if x is None or w is None or b is None or np.any(b.zero != 0):
        return False
    expected = (x.scale.reshape(()) * w.scale.reshape(-1)).astype(np.float32)
    given = b.scale.reshape(-1)
    if given.size not in (1, expected.size) and expected.size != 1:
        return False
    return bool(np.all(np.abs(given - expected) <= _BIAS_TOLERANCE * np.abs(expected)))


def _gemm(group: Group) -> str:
    if not _is_whole(group, bare=True) or len(group.dequantizers) < 2:
        return ""
    a, b = group.inputs[:2]
    if a not in BYTES or b not in BYTES or (a is ir.DataType.INT8 and b is not a):
        return ""
    if group.quantizers and group.outputs[0] is not a:
        return ""
    if not _scalars(group, 1) or not _plain_weight(group):
        return ""
    if attribute(group.node, "alpha", 1.0) != 1.0:
        return ""
    if len(group.inputs) < 3:
        return "QGemm"
    good = attribute(group.node, "beta", 1.0) == 1.0 and group.inputs[2] is ir.DataType.INT32
    return "QGemm" if good else ""


def _matmul(group: Group) -> str:
    if len(group.dequantizers) != 2:
        return ""
    a, b = group.inputs
    if a is not ir.DataType.UINT8 or b not in BYTES:
        return ""
    if not _scalars(group, 1) or not (_plain_weight(group) or _columns(group)):
        return ""
    if not group.quantizers:
        return "MatMulIntegerToFloat"
    return "QLinearMatMul" if _is_whole(group) and group.outputs[0] is a else ""


_RULES: dict[str, Callable[[Group], str]] = {
    **dict.fromkeys(operators(Trait.BYTES), _dropping(words=False)),
    **dict.fromkeys(operators(Trait.WORDS), _dropping(words=True)),
    **dict.fromkeys(
        operators(Trait.CHOOSES) & operators(Trait.BYTES), _dropping(words=False, positive=True)
    ),
    **dict.fromkeys(
        ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"), _unary
    ),
    "Resize": _resize,
    "Split": _split,
    "ArgMax": _argmax,
    "Add": _binary,
    "Mul": _binary,
    "Concat": _concat,
    "Where": _where,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
