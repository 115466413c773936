"""Limits on foreign ONNX files: few bytes may describe many nodes, or constants without end.

All of it is told from the file, before anything is written out or computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir

from fxquant.io import reading
from fxquant.io.reading import Refused

_SMALL = 1 << 16  # bytes of a constant that may say a shape
# what these compute has as many elements as what they take
_KEEP_SIZE = frozenset(
    ("DequantizeLinear", "QuantizeLinear", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze",
     "Flatten", "Identity", "Neg", "Shape", "Size", "Slice", "Gather")
)  # fmt: skip


def require_expandable(model: ir.Model) -> None:
    """Refuse functions that call functions that call functions, beyond what can be written out.

    Raises:
        Refused: a limit is broken, or a function calls itself.
    """
    if model.functions:
        _expanded(model.graph, model, {}, 0)


def _expanded(
    graph: ir.Graph | ir.Function, model: ir.Model, sizes: dict[Any, int], depth: int
) -> int:
    """Nodes of a graph once its functions are written out; `sizes` keeps those of functions."""
    most = reading.ONNX_DEPTH
    if depth > most:
        msg = f"its functions are nested too deep, or in a circle; {most} levels are read"
        raise Refused(msg)
    total = 0
    for node in ir.traversal.RecursiveGraphIterator(graph):
        called = node.op_identifier()
        if called in model.functions and called not in sizes:
            sizes[called] = _expanded(model.functions[called], model, sizes, depth + 1)
        total += sizes.get(called, 1)
        if total > reading.ONNX_NODES:
            msg = f"its functions expand to more than {reading.ONNX_NODES} nodes"
            raise Refused(msg)
    return total


def require_content(model: ir.Model) -> None:
    """Refuse constants whose content is not what their type and shape say.

    Raises:
        Refused: one of them.
    """
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.ExternalTensor):
            continue
        try:
            fits = min(tensor.shape.numpy(), default=0) >= 0
            tensor.numpy()  # a view where the file holds the bytes themselves
        except Exception as error:  # numpy's and onnx_ir's own
            msg = f"the content of the constant {name!r} does not fit its type and shape"
            raise Refused(msg) from error
        if not fits:
            msg = f"the constant {name!r} has the shape {tensor.shape}"
            raise Refused(msg)


def require_small_constants(model: ir.Model) -> None:
    """Refuse files that compute constants which are far larger than those that they hold.

    Raises:
        Refused: there are more than `CONSTANT_ELEMENTS` and `CONSTANT_RATIO` times the stored ones.
    """
    stored = set(model.graph.initializers)
    if all(node.op_type in _KEEP_SIZE for node in _on_constants(model.graph, set(stored))):
        return
    held = sum(_elements(v.shape) for v in model.graph.initializers.values())
    most = max(reading.CONSTANT_ELEMENTS, reading.CONSTANT_RATIO * held)
    try:
        # without `data_prop`, which computes the constants
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(without_weights(model)))
    except Exception:  # of the checker's kind: the lint says what is wrong
        return
    known = {v.name: v for v in (*proto.graph.value_info, *proto.graph.output)}
    total = 0
    for node in _on_constants(model.graph, stored):
        for output in node.outputs:
            if output.name in known:
                total += _elements_of(known[output.name])
        if total > most:
            msg = f"it computes constants of {total} elements; at most {most} are read"
            raise Refused(msg)


def _on_constants(graph: ir.Graph, known: set[str]) -> Iterator[ir.Node]:
    """Nodes that read constants alone; `known` are the names of constants, and grows."""
    for node in graph:
        names = [v.name for v in node.inputs if v is not None]
        if names and all(name in known for name in names):
            known.update(v.name for v in node.outputs if v.name)
            yield node


def _elements(shape: ir.Shape | None) -> int:
    return math.prod(d for d in shape if isinstance(d, int)) if shape is not None else 0


def _elements_of(value: onnx.ValueInfoProto) -> int:
    return math.prod(d.dim_value for d in value.type.tensor_type.shape.dim)


def without_weights(model: ir.Model) -> ir.Model:
    """A copy that takes its large weights as inputs: the checker looks at their type and shape.

    It would copy them several times, and protobuf ends at 2 GB.
    """
    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SMALL and not value.is_graph_input():
            del light.graph.initializers[name]
            value.const_value = None
            light.graph.inputs.append(value)
    return light
