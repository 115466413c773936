"""Which operators of a file run in onnxruntime's integer kernels, and why the others do not.

The answer is read from the graph that onnxruntime makes of the file (fusion keeps the name of the
node or of its output), the reason from the rules by which it fuses. onnxruntime announces nothing:
a group that misses a rule runs in floating point in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx_ir as ir

from fxquant.onnx.io.reader import read_model
from fxquant.onnx.ort.fusion_rules import reason
from fxquant.onnx.qdq import PRODUCTS, Trait, dequantized, keeps_grid, operators
from fxquant.onnx.session import optimized

_FOLLOW = 8  # nodes between an operator and the output of the kernel that absorbed it
_BYTES = frozenset((ir.DataType.INT8, ir.DataType.UINT8))
_INTEGER_TYPES = _BYTES | {
    ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT4, ir.DataType.UINT4,
}  # fmt: skip


@dataclass(frozen=True)
class OperatorRow:
    """Where one operator of the exported graph runs.

    Attributes:
        name: name of the ONNX node: the module path.
        operator: its type, e.g. "Conv".
        kernel: what onnxruntime runs, e.g. "QLinearConv".
        integer: whether that computes on integers.
        reason: why it does not; empty for integer kernels.
        macs: multiply-accumulates for one sample of the recorded shapes.
    """

    name: str
    operator: str
    kernel: str
    integer: bool
    reason: str
    macs: int


def coverage(
    path: str | Path, *, model: ir.Model | None = None, batch: int = 1
) -> tuple[OperatorRow, ...]:
    """Where each operator of a QDQ file runs.

    Args:
        path: the file.
        model: its graph, where it is loaded already.
        batch: size that stands for every symbolic dimension when operations are counted.

    Raises:
        ExportError: onnxruntime cannot load the file.
    """
    model = model or read_model(path)
    after = _Optimized(optimized(path).graph)
    data = _data_values(model.graph)
    rows = []
    for node in model.graph:
        if node.op_type not in _SILENT and any(v.name in data for v in node.outputs):
            rows.append(_row(node, after, batch))
    return tuple(rows)


_PAIR = frozenset(("QuantizeLinear", "DequantizeLinear"))
_SILENT = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Constant", "ConstantOfShape",
     "Shape", "Size", "Cast")
)  # fmt: skip
# operators that multiply integers, in a file or after fusion -> which of their inputs is the weight
_KERNELS = {
    "QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "ConvInteger": 1, "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "DynamicQuantizeLSTM": 1,
    "QAttention": 1,
}  # fmt: skip


def _is_kernel(node: ir.Node) -> bool:
    return node.op_type.startswith("QLinear") or node.op_type in _KERNELS


def _data_values(graph: ir.Graph) -> set[str]:
    """Names of values that carry activations: real numbers that depend on an input's values.

    Integers of a grid stand for real numbers, also behind operators that move them.
    """
    depends = {v.name for v in graph.inputs}
    floats = {v.name for v in (*graph.inputs, *graph.initializers.values()) if _float_type(v)}
    for node in graph:
        sources = {v.name for v in node.inputs if v is not None}
        if node.op_type not in ("Shape", "Size") and sources & depends:
            depends.update(v.name for v in node.outputs)
        for value in node.outputs:
            unknown = value.dtype is None and (sources & floats or not sources)
            moved = keeps_grid(node) and bool(sources & floats)
            real = _float_type(value) or moved or node.op_type in _PAIR or _is_kernel(node)
            if real or unknown:
                floats.add(value.name)
    return {name for name in depends & floats if name is not None}


def _float_type(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _row(node: ir.Node, after: _Optimized, batch: int) -> OperatorRow:
    kernel, integer = after.find(node)
    why = "" if integer else reason(node)
    return OperatorRow(node.name or "", node.op_type, kernel, integer, why, macs(node, batch))


class _Optimized:
    """The graph onnxruntime made: who produces a value, and which values are integers."""

    def __init__(self, graph: ir.Graph) -> None:
        self.by_name: dict[str, ir.Node] = {}
        self.by_output: dict[str, ir.Node] = {}
        self.integers = {v.name for v in graph.inputs if v.dtype in _INTEGER_TYPES}
        for node in graph:
            self.by_output.update((v.name, node) for v in node.outputs if v.name)
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                self.by_name.setdefault((node.name or "").removesuffix("/MatMulAddFusion"), node)
            if self._gives_integers(node):
                self.integers.update(v.name for v in node.outputs)

    def find(self, node: ir.Node) -> tuple[str, bool]:
        """(kernel, whether it computes on integers) of what `node` became."""
        kernel = self.by_name.get(node.name or "")
        if kernel is None:
            kernel = self._absorbed_by(node)
        if kernel is None:
            return "folded away", True
        return kernel.op_type, self._is_integer(kernel)

    def _absorbed_by(self, node: ir.Node) -> ir.Node | None:
        """The first kernel behind `node` whose output kept its name."""
        value: ir.Value | None = node.outputs[0]
        for _ in range(_FOLLOW):
            if value is None:
                return None
            kernel = self.by_output.get(value.name or "")
            if kernel is not None:
                return self._behind_moves(kernel)
            users = value.consumers()
            value = users[0].outputs[0] if users else None
        return None

    def _behind_moves(self, kernel: ir.Node) -> ir.Node:
        # fusion puts Reshape around a Gemm; the Q of a group that stayed float is behind its kernel
        for _ in range(_FOLLOW):
            if kernel.op_type not in ("Reshape", "Transpose", "QuantizeLinear"):
                break
            source = kernel.inputs[0]
            above = self.by_output.get(source.name or "") if source is not None else None
            if above is None:
                break
            kernel = above
        return kernel

    def _gives_integers(self, node: ir.Node) -> bool:
        if node.op_type == "QuantizeLinear":
            return True
        if node.op_type == "QGemm":  # with the output's scale it writes integers, without floats
            return len(node.inputs) > 7
        if node.op_type.startswith("QLinear"):
            return True
        return keeps_grid(node) and self._reads_integers(node)

    def _reads_integers(self, node: ir.Node) -> bool:
        return any(v is not None and v.name in self.integers for v in node.inputs)

    def _is_integer(self, kernel: ir.Node) -> bool:
        if kernel.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return False
        return _is_kernel(kernel) or self._reads_integers(kernel)


def macs(node: ir.Node, batch: int = 1) -> int:
    """Multiply-accumulates of convolutions, matrix products and recurrent layers, by shapes."""
    if node.op_type in _RECURRENT:
        return _recurrent_rows(node, batch) * sum(map(_stored, node.inputs[1:3]))
    place = _KERNELS.get(node.op_type, 1 if node.op_type in PRODUCTS else 0)
    if not place:
        return 0
    data, weight = node.inputs[0], _shape(node.inputs[place], batch)
    if weight is None:
        return 0
    if node.op_type in ("Conv", "QLinearConv", "ConvInteger"):  # an output is a sum over a filter
        return _elements(node.outputs[0], batch) * prod(weight[1:])
    if node.op_type == "ConvTranspose":  # each input element meets a column of the weight
        return _elements(data, batch) * prod(weight[1:])
    if node.op_type in ("Gemm", "QGemm"):
        return (
            _elements(data, batch) * weight[-2 if node.attributes.get_int("transB", False) else -1]
        )
    return _elements(data, batch) * (weight[-1] if len(weight) > 1 else 1)


_RECURRENT = frozenset(("LSTM", "GRU", "RNN"))
_SAME_SIZE = operators(Trait.SAME_SIZE)


def _recurrent_rows(node: ir.Node, batch: int) -> int:
    """Steps × batch of a recurrent layer: each row meets every weight of input and state."""
    hidden = node.attributes.get_int("hidden_size", 1)
    gates = _stored(node.inputs[2]) // hidden  # directions × gates × hidden
    features = _stored(node.inputs[1]) // gates if gates else 0
    return _elements(node.inputs[0], batch) // features if features else 0


def _stored(value: ir.Value | None) -> int:
    """Number of stored weights behind a value, through what puts them together."""
    if value is None or value.producer() is None:
        return prod(_shape(value, 1) or (0,))
    producer = value.producer()
    if producer is None or producer.op_type not in ("Concat", "Unsqueeze", "DequantizeLinear"):
        return 0
    parts = producer.inputs if producer.op_type == "Concat" else producer.inputs[:1]
    return sum(map(_stored, parts))


def _elements(value: ir.Value | None, batch: int) -> int:
    """Number of elements; helper nodes have no shapes, but what they only move has."""
    for _ in range(_FOLLOW):
        shape = _shape(value, batch)
        if shape is not None:
            return prod(shape)
        node = value.producer() if value is not None else None
        if node is not None and node.op_type in _RECURRENT:
            directions = 2 if node.attributes.get_string("direction", "") == "bidirectional" else 1
            hidden = node.attributes.get_int("hidden_size", 1)
            return _recurrent_rows(node, batch) * directions * hidden
        if node is None or node.op_type not in _SAME_SIZE:
            break
        value = node.inputs[0]
    return 0


def _shape(value: ir.Value | None, batch: int) -> tuple[int, ...] | None:
    if value is None:
        return None
    if value.const_value is not None:
        return tuple(value.const_value.numpy().shape)
    if value.shape is None:
        array = dequantized(value)
        return array.shape if array is not None else None
    return tuple(d if isinstance(d, int) else _symbolic(str(d.value), batch) for d in value.shape)


_SIZE = re.compile(r"(?:(\d+)\*)?batch([+-]\d+)?")


def _symbolic(size: str, batch: int) -> int:
    """A dynamic size such as `4*batch+1`; another name stands for the batch itself."""
    found = _SIZE.fullmatch(size)
    return int(found[1] or 1) * batch + int(found[2] or 0) if found else batch
