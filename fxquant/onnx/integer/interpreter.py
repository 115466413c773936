"""Runs a graph of kernels node by node; what has no kernel here runs alone in onnxruntime."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from fxquant.errors import ExportError
from fxquant.onnx.integer.kernels import (
    data_movement,
    dynamic_quantization,
    float_ops,
    gemm,
    lookup,
    reductions,
)
from fxquant.onnx.integer.kernels.arithmetic import Array
from fxquant.onnx.integer.kernels.kernel_graph import MICROSOFT, constant, present
from fxquant.onnx.integer.kernels.lanes import Lanes
from fxquant.onnx.integer.kernels.registry import KernelCall, UnsupportedError, kernels
from fxquant.onnx.integer.rewrite.weight_only import KERNEL
from fxquant.onnx.qdq import Trait, operators
from fxquant.onnx.session import Level, Session, as_feed, open_session, packed

# imported for the kernels they register
_FAMILIES = (lookup, dynamic_quantization, float_ops, data_movement, gemm, reductions, reductions)

# these round as every correct program does: onnxruntime would give the same bits
_EXACT = operators(Trait.MOVES | Trait.CHOOSES | Trait.CONTRACTS | Trait.COUNTS) | {
    "QuantizeLinear", "DequantizeLinear", "Floor", "Ceil", "Round", "Sign", "Not", "IsNaN", "Sqrt",
    "Reciprocal", "Add", "Sub", "Mul", "Div", "Mod", "Sum", "Equal", "Less", "LessOrEqual",
    "Greater", "GreaterOrEqual", "And", "Or", "Xor", "ConstantOfShape", "Range", "Trilu",
    "MatMulInteger", "MatMulIntegerToFloat", "HardSigmoid", "ConvInteger", "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "GlobalAveragePool"  # alone it would not get the layout that it has in a whole model
}  # fmt: skip

# these take values of whatever type
_OF_ANY_TYPE = operators(Trait.MOVES) | {"Shape", "Size", "Cast"}


class Interpreter:
    """Runs the nodes of a graph on numpy arrays.

    Args:
        graph: nodes in an order in which they can run.
        opsets: versions of the operator domains.
        runtime_islands: run floating-point operators whose last bits depend on the implementation
            in onnxruntime, one at a time.
        lanes: how the CPU adds float32 numbers.
        saturates: whether products of an unsigned and a signed byte saturate.
    """

    def __init__(
        self, graph: ir.Graph, opsets: Mapping[str, int], *, lanes: Lanes,
        runtime_islands: bool = False, saturates: bool = False,
    ) -> None:  # fmt: skip
        self.graph = graph
        self.opsets = dict(opsets)
        self.runtime_islands = runtime_islands
        self.lanes = lanes
        self.saturates = saturates
        self.outside: dict[str, str] = {}  # node name -> why onnxruntime ran it
        self._sessions: dict[ir.Node, Session] = {}
        self._fixed: dict[ir.Node, Sequence[Array | None]] = {}

    def run(self, feeds: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        """The wanted values by name.

        Args:
            feeds: graph inputs by name.
            wanted: names of values, graph outputs among them or not.
        """
        values: dict[ir.Value, Array] = {
            v: feeds[str(v.name)] for v in self.graph.inputs if v.name in feeds
        }
        found = {str(v.name): x for v, x in values.items() if v.name in wanted}
        left = {v: len(v.uses()) for node in self.graph for v in present(node.inputs)}
        for node in self.graph:
            results = self._results(node, values)
            for value, array in zip(node.outputs, results, strict=False):
                if array is None or not value.name:
                    continue
                if value.name in wanted:
                    found[value.name] = array
                if left.get(value):
                    values[value] = array
            for value in present(node.inputs):
                left[value] -= 1
                if not left[value]:
                    values.pop(value, None)
        stored = {str(v.name): v for v in self.graph.initializers.values()}
        for name in set(wanted) - set(found):
            array = constant(stored.get(name))
            if array is not None:
                found[name] = array
        return found

    def _results(self, node: ir.Node, values: Mapping[ir.Value, Array]) -> Sequence[Array | None]:
        if node in self._fixed:
            return self._fixed[node]
        operands = [self._operand(v, values) for v in node.inputs]
        results = self.compute(node, operands)
        if node.inputs and all(constant(v) is not None for v in present(node.inputs)):
            self._fixed[node] = results
        return results

    def _operand(self, value: ir.Value | None, values: Mapping[ir.Value, Array]) -> Array | None:
        if value is None or value.name == "":
            return None
        if value in values:
            return values[value]
        found = constant(value)
        if found is None and value.const_value is not None:
            found = value.const_value.numpy()  # the default of an input that was not given
        if found is None:
            what = f"the value {value.name!r} is not known"
            raise ExportError("FXQ581", what, fix="pass every input of the model")
        return found

    def compute(self, node: ir.Node, operands: Sequence[Array | None]) -> Sequence[Array | None]:
        """Run one node on arrays.

        Raises:
            ExportError: neither a kernel here nor onnxruntime can run it.
        """
        if "weight" in node.meta:
            return self._outside(node, operands, KERNEL)
        function = kernels().get(node.op_type)
        if function is None:
            return self._outside(node, operands, f"{node.op_type} has no kernel here")
        other = next((x.dtype for x in operands if x is not None and _is_other_float(x)), None)
        if other is not None and (node.op_type not in _OF_ANY_TYPE or not _is_narrow(other)):
            return self._outside(node, operands, f"kernels here compute in float32, not {other}")
        if self.runtime_islands and node.op_type not in _EXACT and not _is_integer(node):
            return self._outside(node, operands, "asked for")
        try:
            with np.errstate(all="ignore"):
                opset = self.opsets.get("", 13)
                made = function(KernelCall(node, operands, opset, self.lanes, self.saturates))
        except UnsupportedError as reason:
            return self._outside(node, operands, str(reason))
        return [np.asarray(made)] if isinstance(made, np.ndarray | np.generic) else list(made)

    def _outside(
        self, node: ir.Node, operands: Sequence[Array | None], reason: str
    ) -> Sequence[Array | None]:
        self.outside[str(node.name)] = reason
        if node not in self._sessions:
            with packed(_alone(node, operands, self.opsets)) as source:
                level = Level.ALL if "weight" in node.meta else Level.OFF
                self._sessions[node] = open_session(source, level)
        session = self._sessions[node]
        feeds = {f"x{i}": _fed(as_feed(x)) for i, x in enumerate(operands) if x is not None}
        found = session.run(feeds)
        results = [found.get(f"y{i}") for i in range(len(node.outputs))]
        return [_narrowed(x, v) for x, v in zip(results, node.outputs, strict=True)]


def _is_other_float(array: Array) -> bool:
    """Whether it is a float of another width than float32."""
    return array.dtype in (np.float16, np.float64) or _is_narrow(array.dtype)


def _is_narrow(dtype: np.dtype[Any]) -> bool:
    """Whether it is bfloat16 or a float of 8 or 4 bits, which numpy itself does not know."""
    return dtype.isbuiltin != 1 and _is_narrow_type(ir.DataType.from_numpy(dtype))


def _is_narrow_type(dtype: ir.DataType | None) -> bool:
    if dtype is None or not dtype.is_floating_point():
        return False
    return dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def _narrowed(array: Array | None, value: ir.Value) -> Array | None:
    if array is None or value.dtype is None or not _is_narrow_type(value.dtype):
        return array
    return array.astype(value.dtype.numpy())


def _fed(array: Array) -> Array:
    """What onnxruntime takes: narrow floats as float32, which holds each of them."""
    return array.astype(np.float32) if _is_narrow(array.dtype) else array


def _is_integer(node: ir.Node) -> bool:
    return node.op_type.startswith("QLinear") or node.op_type == "QGemm"


def _alone(node: ir.Node, operands: Sequence[Array | None], opsets: Mapping[str, int]) -> ir.Model:
    """A model of one node that takes these operands; a weight that belongs to it is part of it."""
    inputs: list[ir.Value | None] = []
    for i, (value, array) in enumerate(zip(node.inputs, operands, strict=True)):
        if array is None:
            inputs.append(None)
            continue
        made = ir.Value(name=f"x{i}")
        made.type = ir.TensorType(_type_of(value, array))
        # shape inference takes sizes of unknown number for none
        sized = node.op_type == "Resize" and i > 0
        made.shape = ir.Shape(array.shape if sized else [None] * array.ndim)
        inputs.append(made)
    given = present(inputs)
    nodes = _casts(inputs)
    stored: list[ir.Value] = []
    if "weight" in node.meta:
        weight = _copy(node.meta["weight"], None)
        bias = [_constant_copy(v) for v in node.inputs[2:]]
        nodes, stored = [weight], [*present(weight.inputs), *present(bias)]
        inputs[1:] = [weight.outputs[0], *bias]
        given = [v for v in given if v in inputs]
    copy = _copy(node, inputs)
    nodes.append(copy)
    outputs: list[ir.Value | None] = []
    for i, (value, made) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
        made.name = f"y{i}" if value.name else ""
        made.type = ir.TensorType(value.dtype) if value.dtype is not None else None
        if value.name:
            outputs.append(made)
    nodes += _casts(outputs, back=True)
    graph = ir.Graph(given, present(outputs), nodes=nodes, initializers=stored,
                     opset_imports={MICROSOFT: 1, **opsets}, name="alone")  # fmt: skip
    return ir.Model(graph, ir_version=10)


def _casts(values: list[ir.Value | None], *, back: bool = False) -> list[ir.Node]:
    """Casts between float32, in which narrow floats are handed over, and their types; in place.

    Args:
        values: inputs, which the results of the casts replace, or outputs.
        back: the values are outputs: they keep their names outside.
    """
    nodes = []
    for i, value in enumerate(values):
        if value is None or value.dtype is None or not _is_narrow_type(value.dtype):
            continue
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT if back else value.dtype})
        made = cast.outputs[0]
        made.name = f"{value.name}.cast"
        if back:
            made.name, value.name = value.name, made.name
            made.type = ir.TensorType(ir.DataType.FLOAT)
        else:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        values[i] = made
        nodes.append(cast)
    return nodes


def _copy(node: ir.Node, inputs: list[ir.Value | None] | None) -> ir.Node:
    """A node of its own with the same attributes; without inputs given, with the same constants."""
    if inputs is None:
        inputs = [_constant_copy(v) for v in node.inputs]
    copy = ir.node(
        node.op_type, inputs, {}, domain=node.domain, num_outputs=len(node.outputs), name=node.name
    )
    for attribute in node.attributes.values():
        copy.attributes.add(attribute)
    for value in copy.outputs:
        value.name = f"{node.name}.out"
    return copy


def _constant_copy(value: ir.Value | None) -> ir.Value | None:
    if value is None or value.const_value is None:
        return None
    tensor = value.const_value
    return ir.Value(
        name=value.name, shape=ir.Shape(tensor.numpy().shape), type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )  # fmt: skip


def _type_of(value: ir.Value | None, array: Array) -> ir.DataType:
    if value is not None and value.const_value is not None:
        return value.const_value.dtype
    return ir.DataType.from_numpy(array.dtype)


def as_array(x: Any) -> Array:
    """A torch tensor, array or number as an array."""
    return as_feed(x) if hasattr(x, "detach") else np.asarray(x)
