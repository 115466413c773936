"""A QDQ model without its grids: the floating-point model that it approximates.

Weights are stored as floats of the same values. Activations are no longer rounded: each
QuantizeLinear whose integers are only moved before they are dequantized goes, and so do the
DequantizeLinear behind it. Some tools leave out a ReLU in front of a grid without negative numbers;
there the grid's ends stay as a Clip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from fxquant.onnx.ort.fusion_rules import SUMS
from fxquant.onnx.qdq import data_operands, dequantized, keeps_grid, results

if TYPE_CHECKING:
    from numpy.typing import NDArray

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FLOAT = ir.TensorType(ir.DataType.FLOAT)
_CLIPPED = SUMS | {"Add", "BatchNormalization", "ConvTranspose"}  # producers that a ReLU follows


def without_pairs(model: ir.Model) -> ir.Model:
    """A copy in which activations lie on no grid.

    Args:
        model: nodes in order, as `read_model` gives it; it is not changed.
    """
    copy = model.clone()
    graph = copy.graph
    pairs = _Pairs(graph)
    for node in list(graph):
        if node.op_type == _QUANTIZE and node.outputs[0] in pairs.grids:
            _pass(node.outputs[0], _clipped(graph, node))
        elif any(v in pairs.grids for v in node.outputs):
            _move_floats(graph, node, pairs)
    for node, quantizer in pairs.ends:
        _end(graph, node, quantizer)
    for node in graph:
        if node.op_type == _DEQUANTIZE:
            _store(graph, node)
    for node in reversed(list(graph)):
        unread = not any(v.uses() or v in graph.outputs for v in node.outputs)
        if unread and node.op_type in (_QUANTIZE, _DEQUANTIZE):
            graph.remove(node, safe=True)
    return copy


class _Pairs:
    """The integers that can become floats.

    Attributes:
        grids: such a value -> the QuantizeLinear whose grid it lies on.
        ends: DequantizeLinear nodes that read them, with that QuantizeLinear.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.outputs = set(graph.outputs)
        self.grids: dict[ir.Value, ir.Node] = {}
        for node in graph:
            if node.op_type == _QUANTIZE and node.inputs[0] is not None:
                self.grids[node.outputs[0]] = node
            elif keeps_grid(node):
                found = [self.grids[v] for v in data_operands(node) if v in self.grids]
                self.grids |= dict.fromkeys(results(node) if found else (), *found[:1])
        while bad := [v for v in self.grids if not self._can(v)]:
            for value in bad:
                del self.grids[value]
        self.ends = [
            (node, self.grids[v])
            for node in graph
            if node.op_type == _DEQUANTIZE and (v := node.inputs[0]) is not None and v in self.grids
        ]

    def _can(self, value: ir.Value) -> bool:
        producer = value.producer()
        if value in self.outputs or producer is None:
            return False
        if producer.op_type != _QUANTIZE and not all(
            self._lies_on(v, self.grids[value]) for v in data_operands(producer)
        ):
            return False
        return all(self._reads_floats(use.node, value) for use in value.uses())

    def _reads_floats(self, node: ir.Node, value: ir.Value) -> bool:
        if node.op_type == _DEQUANTIZE and node.inputs[0] is value:
            return _ratio(self.grids[value], node) is not None
        moved = keeps_grid(node) and value in data_operands(node)
        return moved and all(v in self.grids for v in results(node))

    def _lies_on(self, operand: ir.Value, grid: ir.Node) -> bool:
        """Whether the operand's integers stand for numbers on this grid."""
        if operand.const_value is not None:
            return _ends(grid) is not None
        return operand in self.grids and _ratio(self.grids[operand], grid) == (1.0, 0.0)


def _ratio(quantize: ir.Node, dequantize: ir.Node) -> tuple[float, float] | None:
    """Factor and offset of a pair; (1, 0) where both lie on one grid, None if it is no number."""
    (a, za), (b, zb) = _grid(quantize), _grid(dequantize)
    if a is None or b is None:
        return (1.0, 0.0) if quantize.inputs[1:] == dequantize.inputs[1:] else None
    if np.array_equal(a, b) and np.array_equal(za, zb):
        return 1.0, 0.0
    if a.size != 1 or b.size != 1:
        return None
    step = float(b.reshape(()))
    offset = (float(za.reshape(-1)[0]) - float(zb.reshape(-1)[0])) * step
    return step / float(a.reshape(())), offset


def _grid(node: ir.Node) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    found = [v.const_value if v is not None else None for v in node.inputs[1:]]
    scale = found[0].numpy().astype(np.float64) if found[0] is not None else None
    zero = found[1] if len(found) > 1 else None
    return scale, zero.numpy().astype(np.float64) if zero is not None else np.zeros(1)


def _pass(old: ir.Value, new: ir.Value | None) -> None:
    if new is not None:
        old.replace_all_uses_with(new)


def _clipped(graph: ir.Graph, quantize: ir.Node) -> ir.Value | None:
    """What goes into a grid, cut off at its ends if a ReLU may have been left out for it."""
    value = quantize.inputs[0]
    producer = value.producer() if value is not None else None
    ends = _ends(quantize)
    if (
        value is None
        or producer is None
        or producer.op_type not in _CLIPPED
        or ends is None
        or ends[0]
    ):
        return value
    name = f"{quantize.name}.clip"
    low, high = (
        _number(graph, x, f"{name}.{end}") for x, end in zip(ends, ("low", "high"), strict=True)
    )
    made = ir.node("Clip", [value, low, high], name=name)
    # what the name stood for is what goes into the grid
    made.outputs[0].name, value.name = value.name, f"{name}.raw"
    made.outputs[0].type = _FLOAT
    graph.insert_before(quantize, made)
    return made.outputs[0]


def _ends(quantize: ir.Node) -> tuple[float, float] | None:
    """Smallest and largest number on a grid; None where it has one for each channel."""
    scale, zero = _grid(quantize)
    if scale is None or scale.size != 1:
        return None
    stored = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    limits = np.iinfo(stored.dtype.numpy() if stored is not None and stored.dtype else np.uint8)
    step, shift = float(scale.reshape(())), float(zero.reshape(-1)[0])
    return (limits.min - shift) * step, (limits.max - shift) * step


def _store(graph: ir.Graph, node: ir.Node) -> None:
    """Store the floats of a constant instead of its integers."""
    result = node.outputs[0]
    floats = dequantized(result)
    if floats is None or result in graph.outputs:
        return
    tensor = ir.tensor(np.asarray(floats, np.float32), name=f"{node.name}.stored")
    value = ir.Value(name=tensor.name, type=_FLOAT, const_value=tensor)
    value.shape = ir.Shape(tensor.shape.numpy())
    graph.register_initializer(value)
    _pass(result, value)


def _move_floats(graph: ir.Graph, node: ir.Node, pairs: _Pairs) -> None:
    for value in results(node):
        value.type = _FLOAT
    # constants beside the integers, such as what is padded with, lie on the grid too
    scale, zero = _grid(pairs.grids[node.outputs[0]])
    for i, operand in enumerate(node.inputs):
        stored = operand.const_value if operand in data_operands(node) else None
        if stored is not None and scale is not None:
            numbers = (stored.numpy().astype(np.float64) - zero.reshape(-1)[0]) * scale.reshape(())
            node.replace_input_with(i, _number(graph, numbers, f"{node.name}.stored{i}"))


def _number(graph: ir.Graph, number: float | NDArray[np.float64], name: str) -> ir.Value:
    array = np.asarray(number, np.float32)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=_FLOAT, shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _end(graph: ir.Graph, node: ir.Node, quantize: ir.Node) -> None:
    """Take a DequantizeLinear out; one that does not undo its QuantizeLinear becomes arithmetic."""
    factor, offset = _ratio(quantize, node) or (1.0, 0.0)
    value, result = node.inputs[0], node.outputs[0]
    steps = [("Mul", factor)] if factor != 1 else []
    steps += [("Add", offset)] if offset else []
    if not steps and result not in graph.outputs:
        _pass(result, value)
        return
    for i, (kind, number) in enumerate(steps or [("Identity", 0.0)]):
        name = f"{node.name}.float{i}"
        operands = [value] if kind == "Identity" else [value, _number(graph, number, f"{name}.by")]
        made = ir.node(kind, operands, name=name)
        made.outputs[0].name, made.outputs[0].type = name, _FLOAT
        graph.insert_before(node, made)
        value = made.outputs[0]
    if value is None:
        return
    if result in graph.outputs:
        value.name, result.name = result.name, f"{node.name}.unread"
        value.shape = result.shape
        graph.outputs[graph.outputs.index(result)] = value
    _pass(result, value)
