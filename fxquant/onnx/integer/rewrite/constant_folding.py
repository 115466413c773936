"""What is computed once: constants, and nodes that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.errors import ExportError
from fxquant.onnx.integer.kernels.kernel_graph import (
    add_constant,
    attribute,
    bypass,
    constant,
    describe,
    discard,
    grid_of,
    is_dequantize,
    ordered,
    present,
)

Compute = Callable[[ir.Node, list[NDArray[Any] | None]], Sequence[NDArray[Any] | None]]

_NEVER_FOLDED = frozenset(
    ("DequantizeLinear", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
     "Bernoulli", "Multinomial", "Dropout", "If", "Loop", "Scan")
)  # fmt: skip


_NEVER_MERGED = frozenset(("If", "Loop", "Scan", *_NEVER_FOLDED)) - {"DequantizeLinear"}


_SHARED_ELEMENTS = 8


_PLAIN = frozenset(
    (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING,
     ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS)
)  # fmt: skip


@dataclass
class Merged:
    """What became one because it computes the same.

    Attributes:
        nodes: name of a node that is gone -> the one that stands for it.
        values: the same for integers.
    """

    nodes: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)


def merge_equal_nodes(graph: ir.Graph, merged: Merged) -> None:
    """Nodes that compute the same from the same become one; small constants count by content."""
    known: dict[tuple[Any, ...], ir.Node] = {}
    for node in ordered(graph):
        if node.op_type in _NEVER_MERGED or any(v.is_graph_output() for v in node.outputs):
            continue
        first = known.setdefault(_identity(node), node)
        if first is node:
            continue
        for mine, theirs in zip(node.outputs, first.outputs, strict=True):
            for use in list(mine.uses()):
                use.node.replace_input_with(use.idx, theirs)
            merged.values[str(mine.name)] = str(theirs.name)
        merged.nodes[str(node.name)] = str(first.name)
        discard(node)


def _identity(node: ir.Node) -> tuple[Any, ...]:
    """What two nodes have in common that compute the same."""
    inputs = tuple(_value_identity(v) for v in node.inputs)
    given = node.attributes.values()
    if any(a.type not in _PLAIN for a in given):
        return (id(node),)
    attributes = tuple(sorted((a.name, str(a.value)) for a in given))
    return node.domain, node.op_type, inputs, attributes, len(node.outputs)


def _value_identity(value: ir.Value | None) -> Any:
    array = constant(value)
    if value is None or array is None or array.size > _SHARED_ELEMENTS:
        return id(value)
    return str(array.dtype), array.shape, array.tobytes()


def fold_constants(graph: ir.Graph, compute: Compute) -> None:
    """Compute what no input can change; a DequantizeLinear stays, so that its integers are seen."""
    for node in ordered(graph):
        given = present(node.inputs)
        if node.op_type in _NEVER_FOLDED or not given:
            continue
        if any(constant(v) is None for v in given) or any(
            v.is_graph_output() for v in node.outputs
        ):
            continue
        try:
            results = compute(node, [constant(v) for v in node.inputs])
        except (ValueError, IndexError, ExportError):
            continue  # operands that do not fit: it fails where the model is run
        for value, array in zip(node.outputs, results, strict=False):
            if array is not None and value.uses():
                made = add_constant(graph, str(value.name), np.asarray(array))
                for use in list(value.uses()):
                    use.node.replace_input_with(use.idx, made)
        discard(node)


def transpose_stored(graph: ir.Graph) -> None:
    """`stored integers -> DQ -> Transpose` becomes `transposed integers -> DQ`."""
    for node in ordered(graph):
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type != "Transpose" or source is None or not is_dequantize(source):
            continue
        stored, grid = constant(source.inputs[0]), grid_of(source)
        if stored is None or grid is None or node.outputs[0].is_graph_output():
            continue
        if grid.scale.ndim > 1 or source.inputs[0] is None or source.inputs[0].const_value is None:
            continue
        order = list(attribute(node, "perm", range(stored.ndim)[::-1]))
        moved = np.ascontiguousarray(stored.transpose(order))
        value = add_constant(graph, f"{node.name}/stored", moved)
        # integers below a byte keep their type
        value.const_value = ir.Tensor(moved, source.inputs[0].const_value.dtype, name=value.name)
        value.type = ir.TensorType(source.inputs[0].const_value.dtype)
        source.replace_input_with(0, value)
        if grid.scale.size > 1:
            axis = attribute(source, "axis", 1) % stored.ndim
            source.attributes.add(ir.AttrInt64("axis", order.index(axis)))
        describe(source.outputs[0], node.outputs[0])
        bypass(node)
