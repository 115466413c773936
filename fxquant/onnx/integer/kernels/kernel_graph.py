"""Looking at and editing the graph that is rewritten into kernels.

The graph is a copy of the file's: nodes, values and edges are its own, tensors are shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from fxquant.onnx.io.reader import read_model, tidy

MICROSOFT = "com.microsoft"
Source = ir.Model | onnx.ModelProto | str | Path

BYTES = frozenset((ir.DataType.INT8, ir.DataType.UINT8))
WORDS = frozenset((ir.DataType.INT16, ir.DataType.UINT16))


@dataclass(frozen=True)
class NodeQuantParams:
    """Scale and zero point of a Q or DQ node.

    Attributes:
        scale: float32, `()` per tensor, `[C]` per channel, the tensor's rank per block.
        zero: integers, shaped like `scale`.
        dtype: integer type.
        explicit: whether the zero point is written in the graph.
    """

    scale: NDArray[np.float32]
    zero: NDArray[Any]
    dtype: ir.DataType
    explicit: bool

    @property
    def single(self) -> bool:
        """Whether one scale serves the whole tensor."""
        return self.scale.size == 1 and self.zero.size == 1

    def equals(self, other: NodeQuantParams) -> bool:
        """Whether both are one explicit grid per tensor, bit for bit."""
        if not (self.single and other.single and self.explicit and other.explicit):
            return False
        same = self.scale.reshape(()) == other.scale.reshape(())
        return bool(self.dtype is other.dtype and same and self.zero.item() == other.zero.item())


_LONG = 1 << 16  # elements of a vector that is no shape


def load(source: Source) -> ir.Model:
    """A copy of a model in which every constant is an initializer and every function is inlined."""
    model = tidy(_copied(source))
    for propagate in (False, True):
        made = [v for node in model.graph for v in node.outputs]
        # it writes out what every vector may hold, and vectors may be endless
        endless = propagate and any(_is_long_vector(v) for v in made)
        if not endless and not all(map(_described, made)):
            options: dict[str, bool] = {"check_type": False, "strict_mode": False}
            model = ShapeInferencePass(data_prop=propagate, **options)(model).model
    for node in model.graph:  # quantizers of other domains are unknown to shape inference
        if is_quantize(node) and node.outputs[0].dtype is None and (grid := grid_of(node)):
            node.outputs[0].type = ir.TensorType(grid.dtype)
    return model


def _copied(source: Source) -> ir.Model:
    if isinstance(source, ir.Model):
        return source.clone()
    if isinstance(source, onnx.ModelProto):
        return ir.from_proto(source)
    return read_model(source)


def _is_long_vector(value: ir.Value) -> bool:
    sizes = list(value.shape) if value.shape is not None else []
    return len(sizes) == 1 and isinstance(sizes[0], int) and sizes[0] > _LONG


def _described(value: ir.Value) -> bool:
    return value.name == "" or (value.shape is not None and value.dtype is not None)


def is_quantize(node: ir.Node | None) -> bool:
    """Whether it is a QuantizeLinear."""
    return node is not None and node.op_type == "QuantizeLinear"


def is_dequantize(node: ir.Node | None) -> bool:
    """Whether it is a DequantizeLinear."""
    return node is not None and node.op_type == "DequantizeLinear"


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of an initializer that the caller of the model cannot replace, or None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def grid_of(node: ir.Node) -> NodeQuantParams | None:
    """The grid of a Q or DQ node; None where it is computed."""
    scale = constant(node.inputs[1])
    if scale is None:
        return None
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is not None:
        zero = constant(given)
        if zero is None or given.const_value is None:
            return None
        return NodeQuantParams(scale, zero, given.const_value.dtype, explicit=True)
    dtype = _default_type(node)
    return NodeQuantParams(scale, np.zeros(scale.shape, np.int64), dtype, explicit=False)


def _default_type(node: ir.Node) -> ir.DataType:
    """Type of the integers where no zero point tells it."""
    if is_quantize(node):
        return ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
    return dtype_of(node.inputs[0]) or ir.DataType.UINT8


def dtype_of(value: ir.Value | None) -> ir.DataType | None:
    """Element type of a value."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.dtype
    producer = value.producer()
    if is_quantize(producer) and producer is not None:
        found = grid_of(producer)
        return found.dtype if found is not None else value.dtype
    return value.dtype


def integers_of(node: ir.Node) -> ir.DataType | None:
    """Type of the integers of a Q or DQ node."""
    return dtype_of(node.outputs[0] if is_quantize(node) else node.inputs[0])


def consumers(value: ir.Value) -> list[ir.Node]:
    """The node behind each use of a value, in graph order of the uses."""
    return [use.node for use in value.uses()]


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The node that reads a value, if one does, once, and the value is no output of the model."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def present(values: Sequence[ir.Value | None]) -> list[ir.Value]:
    """Values that exist: an omitted optional one is None or has no name."""
    return [v for v in values if v is not None and v.name != ""]


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """An initializer with a name of its own."""
    found, count = name, 0
    while found in graph.initializers:
        count += 1
        found = f"{name}_{count}"
    tensor = ir.Tensor(array, name=found)
    value = ir.Value(
        name=found,
        shape=ir.Shape(tensor.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def sizes(value: ir.Value | None) -> list[int | None] | None:
    """Shape with None for dynamic sizes; None where the rank is unknown."""
    if value is None:
        return None
    if value.const_value is not None:
        return list(value.const_value.numpy().shape)
    if value.shape is None:
        return None
    return [d if isinstance(d, int) else None for d in value.shape]


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute as a Python value."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def bypass(node: ir.Node) -> None:
    """Remove a node with one output: its consumers read its first input."""
    source = node.inputs[0]
    if source is None:
        return
    for use in list(node.outputs[0].uses()):
        use.node.replace_input_with(use.idx, source)
    discard(node)


def discard(*nodes: ir.Node) -> None:
    """Remove nodes that nothing reads."""
    for node in nodes:
        if node.graph is not None and not any(
            v.uses() or v.is_graph_output() for v in node.outputs
        ):
            node.graph.remove(node, safe=True)


def ordered(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes in order, over a copy, so that the graph may change meanwhile."""
    for node in list(graph):
        if node.graph is graph:
            yield node


def describe(value: ir.Value, like: ir.Value, dtype: ir.DataType | None = None) -> None:
    """Copy the shape of another value, and its type unless one is given."""
    value.shape = ir.Shape(like.shape) if like.shape is not None else None
    found = dtype or like.dtype
    value.type = ir.TensorType(found) if found is not None else None


def take_output(old: ir.Node, made: ir.Value) -> None:
    """Give the name, type and consumers of what `old` makes to another value, and remove `old`."""
    graph, value = old.graph, old.outputs[0]
    if graph is None:
        return
    describe(made, value)
    for use in list(value.uses()):
        use.node.replace_input_with(use.idx, made)
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = made
    made.name, value.name = value.name, f"{value.name}/old"
    discard(old)
