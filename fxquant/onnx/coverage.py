"""Which operators of a file run in onnxruntime's integer kernels, and why the others do not.

The answer is read from the graph that onnxruntime makes of the file (fusion keeps the name of the
node or of its output), the reason from the rules by which it fuses. onnxruntime announces nothing:
a group that misses a rule runs in floating point in silence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fxquant.onnx.noise import constant, dequantized, grid_range
from fxquant.onnx.report import OperatorRow
from fxquant.onnx.runtime import optimized

_MOVES = frozenset(
    (
        "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand", "Tile",
        "Gather", "GatherElements", "GatherND", "Split", "Identity", "DepthToSpace", "SpaceToDepth",
        "MaxPool", "NhwcMaxPool", "ReduceMax", "ReduceMin", "Resize", "Pad", "Concat",
    )
)  # fmt: skip
_SUMS = frozenset(("Conv", "Gemm", "MatMul"))
_OTHERS = frozenset(
    (
        "Add", "Mul", "Where", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid",
        "Softmax", "ArgMax",
    )
)  # fmt: skip
# operators that onnxruntime's CPU provider has an integer kernel for
_CAPABLE = _MOVES | _SUMS | _OTHERS
_FOLLOW = 8  # nodes between an operator and the output of the kernel that absorbed it
_BYTES = frozenset((ir.DataType.INT8, ir.DataType.UINT8))
_INTEGER_TYPES = _BYTES | {
    ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT4, ir.DataType.UINT4,
}  # fmt: skip


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
    model = model or ir.load(path)
    after = _Optimized(optimized(path).graph)
    data = _data_values(model.graph)
    rows = []
    for node in model.graph:
        if node.op_type not in _SILENT and any(v.name in data for v in node.outputs):
            rows.append(_row(node, after, batch))
    return tuple(rows)


_SILENT = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "Constant", "ConstantOfShape", "Shape", "Cast")
)


def _data_values(graph: ir.Graph) -> set[str]:
    """Names of values that carry activations: what depends on a float input."""
    data = {v.name for v in graph.inputs if v.dtype is None or v.dtype.is_floating_point()}
    for node in graph:
        if node.op_type in ("Shape", "Size", "Constant"):
            continue
        if any(v is not None and v.name in data for v in node.inputs):
            data.update(v.name for v in node.outputs)
    return {name for name in data if name is not None}


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
        return node.op_type in (*_MOVES, "Where") and self._reads_integers(node)

    def _reads_integers(self, node: ir.Node) -> bool:
        return any(v is not None and v.name in self.integers for v in node.inputs)

    def _is_integer(self, kernel: ir.Node) -> bool:
        if kernel.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return False
        return self._reads_integers(kernel)


def reason(node: ir.Node) -> str:
    """Why onnxruntime runs an operator of a QDQ graph in floating point."""
    if node.op_type not in _CAPABLE:
        return _absorbable(node) or f"onnxruntime's CPU provider has no integer {node.op_type}"
    return _input_reason(node) or _output_reason(node) or _other_reason(node)


def _absorbable(node: ir.Node) -> str:
    """Relu and Clip have no kernel, they vanish into their producer's."""
    producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if (
        node.op_type not in ("Relu", "Clip")
        or producer is None
        or producer.op_type == "DequantizeLinear"
    ):
        return ""
    quantizers = _quantizers(node.outputs[0])
    if not quantizers:
        return f"its output is not quantized, so {producer.op_type} and {node.op_type} stay float"
    zero = constant(quantizers[0].inputs[2]) if len(quantizers[0].inputs) > 2 else None
    low, _ = grid_range(quantizers[0])
    if node.op_type == "Relu" and zero is not None and int(zero.reshape(-1)[0]) != low:
        at = int(zero.reshape(-1)[0])
        return f"the zero point {at} is not the smallest integer {low}: the Relu is not redundant"
    return f"its producer {producer.op_type} runs in floating point"


def _input_reason(node: ir.Node) -> str:
    operands = node.inputs if node.op_type in ("Add", "Mul", "Concat") else node.inputs[:1]
    if node.op_type == "MatMul":
        operands = node.inputs[:2]
    for value in operands:
        if value is not None and _dequantizer(value) is None:
            return _float_operand(node, value)
    if node.op_type in _SUMS:
        return _weight_reason(node)
    return _width_reason(node, operands)


def _float_operand(node: ir.Node, value: ir.Value) -> str:
    if constant(value) is not None:
        return "its constant operand is floating point"
    producer = value.producer()
    if producer is None:
        return "its operand is a floating-point input of the model"
    if node.op_type == "Add" and producer.op_type == "MatMul":
        return (
            "a bias that onnxruntime did not join with its MatMul: sizes are dynamic, or no int32"
        )
    return f"its operand is floating point, made by {producer.op_type}"


def _weight_reason(node: ir.Node) -> str:
    weight = node.inputs[1]
    source = _dequantizer(weight) if weight is not None else None
    if source is None:
        return "its weight is floating point"
    if _integer_type(source) not in _BYTES:
        return f"its weight is {_type_name(source)}; integer kernels take 8 bits"
    return _width_reason(node, node.inputs[:1]) or _bias_reason(node)


def _width_reason(node: ir.Node, operands: Sequence[ir.Value | None]) -> str:
    if node.op_type in _MOVES:
        return ""
    for value in operands:
        source = _dequantizer(value) if value is not None else None
        if source is not None and _integer_type(source) not in _BYTES:
            return f"its input is {_type_name(source)}; integer kernels take 8 bits"
    return ""


def _bias_reason(node: ir.Node) -> str:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return ""
    source = _dequantizer(bias)
    if source is None:
        return "its bias is floating point" if not _quantizers(node.outputs[0]) else ""
    return (
        "" if bias_scale_fits(node) else "the scale of its bias is not input scale × weight scale"
    )


def bias_scale_fits(node: ir.Node, *, tolerance: float = 0.01) -> bool:
    """Whether the int32 bias of a Conv or Gemm lies on the grid that its integer kernel adds on.

    onnxruntime checks it (to 1 %) for Conv alone; for Gemm a wrong scale is used in silence.
    """
    scales = [
        constant(d.inputs[1]) if d is not None else None for d in map(_dequantizer, node.inputs[:3])
    ]
    x, w, b = scales if len(scales) == 3 else (None, None, None)
    if x is None or w is None or b is None:
        return True
    return bool(np.allclose(b.reshape(-1), (x * w).reshape(-1), rtol=tolerance, atol=0.0))


def _output_reason(node: ir.Node) -> str:
    output = node.outputs[0]
    if output.is_graph_output() and node.op_type not in ("Gemm", "MatMul"):
        return "its float output is an output of the model"
    users = output.consumers()
    quantizers = _quantizers(output)
    needs = node.op_type not in ("Gemm", "MatMul", "ArgMax")
    if len(quantizers) > 1 and len({_parameters(q) for q in quantizers}) > 1:
        return f"its output is quantized in {len(quantizers)} different ways"
    if quantizers and len(users) > len(quantizers):
        others = sorted({u.op_type for u in users if u not in quantizers})
        return f"its output is quantized and also read as float by {', '.join(others)}"
    if needs and not quantizers:
        activation = users[0] if len(users) == 1 and users[0].op_type in ("Relu", "Clip") else None
        return (
            _absorbable(activation) if activation is not None else ""
        ) or "its output is not quantized"
    return ""


def _other_reason(node: ir.Node) -> str:
    if node.op_type in _MOVES and not _same_grid(node):
        return "its output has another grid than its input"
    source = _dequantizer(node.inputs[0]) if node.inputs[0] is not None else None
    if source is not None and _integer_type(source) is ir.DataType.INT8:
        return "int8 activations that several operators read are not fused on x86; use uint8"
    if node.op_type == "Resize":
        return "only nearest-neighbour resizing runs on integers"
    return "onnxruntime did not fuse it"


def _same_grid(node: ir.Node) -> bool:
    source = _dequantizer(node.inputs[0]) if node.inputs[0] is not None else None
    quantizers = _quantizers(node.outputs[0])
    return source is None or not quantizers or _parameters(source) == _parameters(quantizers[0])


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear behind a value, through Transpose and Reshape of weights."""
    node = value.producer() if value is not None else None
    for _ in range(_FOLLOW):
        if node is None or node.op_type == "DequantizeLinear":
            return node
        if node.op_type not in ("Transpose", "Reshape") or node.inputs[0] is None:
            return None
        node = node.inputs[0].producer()
    return None


def _quantizers(value: ir.Value) -> list[ir.Node]:
    return [node for node in value.consumers() if node.op_type == "QuantizeLinear"]


def _parameters(node: ir.Node) -> tuple[bytes, ...]:
    """Scale and zero point of a Q or DQ node, comparable."""
    arrays = (constant(value) for value in node.inputs[1:3])
    return tuple(b"" if array is None else array.tobytes() for array in arrays)


def _integer_type(dequantize: ir.Node) -> ir.DataType | None:
    for value in (
        dequantize.inputs[0],
        dequantize.inputs[2] if len(dequantize.inputs) > 2 else None,
    ):
        if value is not None and value.const_value is not None:
            return value.const_value.dtype
        if value is not None and value.dtype is not None:
            return value.dtype
    return None


def _type_name(dequantize: ir.Node) -> str:
    found = _integer_type(dequantize)
    return found.name.lower() if found is not None else "of unknown type"


def macs(node: ir.Node, batch: int = 1) -> int:
    """Multiply-accumulates of convolutions, matrix products and recurrent layers, by shapes."""
    if node.op_type in _RECURRENT:
        return _recurrent_macs(node, batch)
    if node.op_type not in _TERMS:
        return 0
    data, weight = _shape(node.inputs[0], batch), _shape(node.inputs[1], batch)
    output = _shape(node.outputs[0], batch)
    if data is None or weight is None or output is None:
        return 0
    if node.op_type == "ConvTranspose":  # each input element meets a column of the weight
        return prod(data) * prod(weight[1:])
    if node.op_type == "Conv":
        return prod(output) * prod(weight[1:])
    terms = (
        data[0] if node.op_type == "Gemm" and node.attributes.get_int("transA", False) else data[-1]
    )
    return prod(output) * terms


_TERMS = frozenset((*_SUMS, "ConvTranspose"))
_RECURRENT = frozenset(("LSTM", "GRU", "RNN"))


def _recurrent_macs(node: ir.Node, batch: int) -> int:
    """Each step multiplies its input and its state with all weights."""
    data, *weights = (_shape(value, batch) for value in node.inputs[:3])
    if data is None:
        return 0
    return data[0] * data[1] * sum(prod(shape) for shape in weights if shape is not None)


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
