"""Products of two unsigned bytes: the form of a graph that every CPU computes exactly.

Before: `uint8 activation -> Conv <- DequantizeLinear <- int8 weight`
After:  `uint8 activation -> Conv <- DequantizeLinear <- uint8 weight`, weight and zero point + 128

Both stand for the same real numbers. On x86 CPUs without VNNI, onnxruntime's kernels for an
unsigned and a signed byte add pairs of products in 16 bits that saturate; those for two unsigned
bytes do not. Depthwise convolutions keep their signed weights: their kernel is exact as it is.

Signed integers that were computed, such as the keys and values of an attention, become unsigned
with everything that moves them, from their QuantizeLinear to the DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from fxquant.onnx.io.reader import read_model
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.ort.fusion_rules import SUMS
from fxquant.onnx.qdq import data_operands, keeps_grid, results

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
SHIFT = 128  # from int8 to uint8
_INT8 = ir.DataType.INT8
_UINT8 = ir.TensorType(ir.DataType.UINT8)
# operators that look at a value's shape only
_SHAPES = frozenset(("Shape", "Size"))


def exact_model(path: str | Path) -> ir.Model:
    """The graph of a file in a form that this CPU computes exactly.

    Raises:
        ExportError: FXQ511 or FXQ570, the file cannot be read.
    """
    model = read_model(path)
    if not this_cpu().exact:
        make_unsigned(model.graph)
    return model


def make_unsigned(graph: ir.Graph) -> frozenset[str]:
    """Write the signed second operands of products as unsigned bytes, in place.

    Args:
        graph: a QDQ graph, nodes in order.

    Returns:
        Names of the values that are uint8 now: their integers are those of before plus 128. What
        cannot be rewritten stays as it is: signed integers that come from a graph input, are a
        graph output, or pass through an operator that does more than move them.
    """
    names: set[str] = set()
    for node in graph:
        start = _signed_operand(node)
        if start is None or start.name in names:
            continue
        connected = _Connected()
        if connected.collect(start):
            connected.convert(graph)
            names.update(value.name for value in connected.values if value.name)
    return frozenset(names)


def _signed_operand(node: ir.Node) -> ir.Value | None:
    """The int8 integers of the second operand of a product of integers, or None."""
    if node.op_type not in SUMS or _is_depthwise(node):
        return None
    first, second = (_dequantizer(value) for value in node.inputs[:2])
    integers = second.inputs[0] if first is not None and second is not None else None
    return integers if integers is not None and _type(integers) is _INT8 else None


def _is_depthwise(node: ir.Node) -> bool:
    weight = node.inputs[1]
    shape = None if node.op_type != "Conv" or weight is None else weight.shape
    if shape is None:
        return False
    return shape[1] == 1 and shape[0] == node.attributes.get_int("group", 1)


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a value comes from, through operators that move real numbers."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type == _DEQUANTIZE:
            return node
        value = data_operands(node)[0] if keeps_grid(node) else None
    return None


def _type(value: ir.Value) -> ir.DataType | None:
    """Type of integers, also where only the zero point beside them tells it."""
    if value.const_value is not None:
        return value.const_value.dtype
    if value.dtype is not None:
        return value.dtype
    for node, position in value.uses():
        if node.op_type == _DEQUANTIZE and position == 0 and len(node.inputs) > 2:
            zero = node.inputs[2]
            return zero.const_value.dtype if zero is not None and zero.const_value else None
    return None


@dataclass
class _Connected:
    """Integers on one grid: all values that operators move to or from each other.

    Attributes:
        values: the integers.
        pairs: QuantizeLinear and DequantizeLinear nodes at the ends.
    """

    values: dict[ir.Value, None] = field(default_factory=dict)
    pairs: dict[ir.Node, None] = field(default_factory=dict)

    def collect(self, start: ir.Value) -> bool:
        """Find all that is connected; False where some of it cannot be unsigned."""
        pending = [start]
        while pending:
            value = pending.pop()
            if value in self.values:
                continue
            self.values[value] = None
            found = self._neighbours(value)
            if found is None:
                return False
            pending += found
        return True

    def _neighbours(self, value: ir.Value) -> list[ir.Value] | None:
        producer = value.producer()
        outside = value.is_graph_output() or value.is_graph_input()
        if outside or (producer is None and value.const_value is None):
            return None
        found: list[ir.Value] = []
        ends = [producer] if producer is not None else []
        for node in (*ends, *(use.node for use in value.uses())):
            moved = self._through(node, value)
            if moved is None:
                return None
            found += moved
        return found

    def _through(self, node: ir.Node, value: ir.Value) -> list[ir.Value] | None:
        """Other integers that a node moves together with `value`; None where it computes."""
        if node.op_type in _SHAPES:
            return []
        if node.op_type in (_QUANTIZE, _DEQUANTIZE):
            if _zero_point(node) is None:
                return None
            self.pairs[node] = None
            return []
        if not keeps_grid(node):
            return None
        moved = [*data_operands(node), *results(node)]
        return moved if value in moved else None

    def convert(self, graph: ir.Graph) -> None:
        """Shift the integers and the zero points at their ends, in place."""
        for value in self.values:
            value.type = _UINT8
            if value.const_value is not None:
                stored = _flipped(np.ascontiguousarray(value.const_value.numpy()))
                value.const_value = ir.Tensor(stored, name=value.name)
        zeros: dict[ir.Value | None, ir.Value] = {}
        for node in self.pairs:
            given = node.inputs[2] if len(node.inputs) > 2 else None
            # a zero point may serve signed integers elsewhere: these get their own
            if given is None or given not in zeros:
                zeros[given] = _unsigned_zero(graph, node, given)
            if given is None:
                node.resize_inputs(3)
                node.attributes.pop("output_dtype", None)
            node.replace_input_with(2, zeros[given])
        for given in zeros:
            if given is not None and given.name and not given.uses():
                graph.initializers.pop(given.name, None)


def _unsigned_zero(graph: ir.Graph, node: ir.Node, given: ir.Value | None) -> ir.Value:
    zero = _zero_point(node)
    if zero is None:
        msg = "the zero point is computed"
        raise RuntimeError(msg)
    stem = (given.name if given is not None else None) or f"{node.name}_zero_point"
    name = next(n for n in _names(f"{stem}.uint8") if n not in graph.initializers)
    tensor = ir.Tensor(_flipped(zero), name=name)
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=_UINT8, const_value=tensor)
    graph.register_initializer(value)
    return value


def _names(stem: str) -> Iterator[str]:
    yield stem
    yield from (f"{stem}_{i}" for i in count(1))


def _zero_point(node: ir.Node) -> NDArray[np.int8] | None:
    """The zero point of a Q or DQ node; None where it is computed."""
    scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None:  # it may be left out, and is zero then
        stored = scale.const_value if scale is not None else None
        return None if stored is None else np.zeros(stored.shape.numpy(), np.int8)
    if zero.const_value is None or zero.is_graph_input():
        return None
    return np.asarray(zero.const_value.numpy(), np.int8)


def _flipped(integers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Integers plus 128: the same bytes but for the highest bit."""
    return np.asarray(integers.view(np.uint8) ^ np.uint8(SHIFT))
