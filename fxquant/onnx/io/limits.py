"""Limits on foreign ONNX files: few bytes may describe many nodes, or tensors without end.

What the file tells is checked before anything is written out. Sizes that only a run tells are found
by a run in little memory and time, before anything else runs the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.errors import ExportError
from fxquant.io import reading
from fxquant.io.reading import Budget, Refused
from fxquant.onnx.qdq import Trait, operators
from fxquant.onnx.session import OutOfMemoryError, OutOfTimeError, Source, packed, run_within
from fxquant.onnx.weightless import weight_bytes, without_weights

# what these compute has about as many elements as what they take
_KEEP_SIZE = operators(Trait.SAME_SIZE) | {"Shape", "Size", "Slice", "Gather"}


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
    stored = sum(len(f) for f in model.functions.values()) + len(model.graph)
    nodes = min(reading.ONNX_NODES, max(reading.ONNX_EXPANDED, reading.ONNX_RATIO * stored))
    if depth > most:
        msg = f"its functions are nested too deep, or in a circle; {most} levels are read"
        raise Refused(msg)
    total = 0
    for node in ir.traversal.RecursiveGraphIterator(graph):
        called = node.op_identifier()
        if called in model.functions and called not in sizes:
            sizes[called] = _expanded(model.functions[called], model, sizes, depth + 1)
        total += sizes.get(called, 1)
        if total > nodes:
            msg = f"its functions expand to more than {nodes} nodes"
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


def require_small_constants(model: ir.Model, size: int) -> None:
    """Refuse files that compute constants which are far larger than those that they hold.

    Args:
        model: the model.
        size: bytes of its file.

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
    total, untold = 0, False
    for node in _on_constants(model.graph, stored):
        for output in node.outputs:
            untold = untold or not _is_told(known.get(output.name))
            if output.name in known:
                total += _elements_of(known[output.name])
        if total > most:
            msg = f"it computes constants of {total} elements; at most {most} are read"
            raise Refused(msg)
    if untold:
        with packed(_constant_part(model)) as source:
            _run_once(source, {}, size + weight_bytes(model))


def require_runnable(path: str | Path, model: ir.Model, feeds: Mapping[str, NDArray[Any]]) -> None:
    """Refuse files whose run needs far more memory or time than their size, and the data's, says.

    Args:
        path: the file.
        model: what was read from it; its weights may lie in another file.
        feeds: inputs by name.

    Raises:
        Refused: a limit is broken.
    """
    data = sum(x.nbytes for x in feeds.values())
    _run_once(path, feeds, Path(path).stat().st_size + weight_bytes(model) + data)


def _run_once(source: Source, feeds: Mapping[str, NDArray[Any]], size: int) -> None:
    budget = Budget(size, reading.RUN_SECONDS, reading.RUN_SECONDS_PER_MB)
    large = size * reading.RUN_RATIO > reading.RUN_BYTES
    try:
        run_within(source, feeds, budget, bounded=not large)
    except OutOfTimeError as error:
        raise Refused(budget.text) from error
    except OutOfMemoryError as error:
        msg = f"a run needs more than {reading.RUN_BYTES} bytes, for a file and data of {size}"
        raise Refused(msg) from error
    except ExportError:  # whoever runs it for its results tells what is wrong
        return


def _constant_part(model: ir.Model) -> ir.Model:
    """The nodes that read constants alone, as a model without inputs."""
    part = model.clone()
    graph = part.graph
    kept = dict.fromkeys(_on_constants(graph, set(graph.initializers)))
    read = {v for node in kept for v in node.inputs if v is not None}
    graph.outputs.clear()
    for node in reversed([node for node in graph if node not in kept]):
        graph.remove(node, safe=True)
    graph.inputs.clear()
    for name in [n for n, v in graph.initializers.items() if v not in read]:
        del graph.initializers[name]
    graph.outputs.extend(v for node in kept for v in node.outputs if v.name and v not in read)
    return part


def _is_told(value: onnx.ValueInfoProto | None) -> bool:
    """Whether shape inference has found the size of every dimension."""
    if value is None or not value.type.tensor_type.HasField("shape"):
        return False
    return all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)


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
