"""Nodes, constants and names of the ONNX graph that is being written.

Names follow the model: the node that does the work of module `layer1.0.conv1` is called
`layer1.0.conv1`, its helpers `layer1.0.conv1.<operator>`, its result `layer1.0.conv1.output`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from torch import Tensor

from fxquant.onnx.qdq import COUNTS
from fxquant.onnx.runs.observed import Dim, Shaped

Operand: TypeAlias = "ir.Value | Tensor | NDArray[Any] | Sequence[int] | None"

_NAMED_ELEMENTS = 8  # constants up to this size are named by their content
_SHARED_BYTES = 512  # constants up to this size are stored once
# operators whose results are integers or booleans, whatever their operands are; and those whose
# first result only is a float
_TRUTHS = frozenset(
    (
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "IsNaN",
        "IsInf",
        "And",
        "Or",
        "Not",
    )
)
_INDEXED = frozenset(("TopK", "MaxPool", "Unique"))


class Builder:
    """Collects nodes in order and initializers by name.

    Args:
        opset: version of the ONNX operators.
        contrib: whether the graph is for onnxruntime only, with its `com.microsoft` operators.
    """

    def __init__(self, opset: int, *, contrib: bool = False) -> None:
        self.opset = opset
        self.contrib = contrib
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.domains: dict[str, int] = {"": opset}
        self.functions: list[ir.Function] = []
        self._value_names: set[str] = set()
        self._node_names: set[str] = set()
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._bfloat16: set[ir.Value] = set()
        self._scope = ""
        self._main: ir.Node | None = None

    # --- nodes ---------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: Operand, domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output; attributes that are None are left out."""
        return self.ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def ops(
        self, kind: str, outputs: int, *inputs: Operand, domain: str = "", **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """A node with several outputs."""
        values = [self.operand(x) for x in inputs]
        while values and values[-1] is None:
            values.pop()
        given = {k: v for k, v in attributes.items() if v is not None}
        node = ir.node(kind, values, given or None, domain=domain, num_outputs=outputs)
        if domain:
            self.domains[domain] = 1
        return self.add(node)

    def add(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """Append a node; returns its outputs, in bfloat16 behind one that computes on bfloat16.

        Before: `Add(bfloat16, bfloat16)`, for which onnxruntime has no kernel on CPUs.
        After:  `Cast(float32) -> Add -> Cast(bfloat16)`, which is how torch computes it.
        """
        if node.op_type == "Cast":
            self.nodes.append(node)
            if node.attributes.get_int("to", 1) == ir.DataType.BFLOAT16:
                self._bfloat16.update(node.outputs)
            return tuple(node.outputs)
        narrow = [i for i, v in enumerate(node.inputs) if v is not None and self._is_bfloat16(v)]
        for i in narrow:
            node.replace_input_with(i, self.op("Cast", node.inputs[i], to=ir.DataType.FLOAT))
        self.nodes.append(node)
        counts = node.op_type in COUNTS or node.op_type in _TRUTHS
        if not narrow or counts:
            return tuple(node.outputs)
        kept = 1 if node.op_type in _INDEXED else len(node.outputs)
        rounded = [self.op("Cast", v, to=ir.DataType.BFLOAT16) for v in node.outputs[:kept]]
        return (*rounded, *node.outputs[kept:])

    def _is_bfloat16(self, value: ir.Value) -> bool:
        return value in self._bfloat16 or value.dtype is ir.DataType.BFLOAT16

    def main(self, value: ir.Value) -> ir.Value:
        """Mark the node that does the work of the current scope; default: the last one."""
        self._main = value.producer()
        return value

    @contextmanager
    def scope(self, path: str) -> Iterator[None]:
        """Nodes made inside belong to `path` and get their names at the end."""
        first = len(self.nodes)
        self._scope, self._main = path, None
        yield
        made = [n for n in self.nodes[first:] if n.name is None]
        main = self._main if self._main in made else (made[-1] if made else None)
        for node in made:
            self.name_node(node, path if node is main else f"{path}.{node.op_type.lower()}")
        self._scope, self._main = "", None

    def name_node(self, node: ir.Node, name: str) -> None:
        """Name a node, and after it its outputs that have no name."""
        node.name = unique(name, self._node_names)
        single = len(node.outputs) == 1
        for i, value in enumerate(node.outputs):
            if value.name is None:
                self.name_value(value, node.name if single else f"{node.name}_{i}")

    def name_value(self, value: ir.Value, name: str) -> None:
        """Give a value a name of its own."""
        value.name = unique(name, self._value_names)

    # --- constants -----------------------------------------------------------------------------

    def operand(self, x: Operand) -> ir.Value | None:
        """An operand as a value: lists of integers become int64 vectors."""
        if x is None or isinstance(x, ir.Value):
            return x
        return self.constant(x)

    def constant(
        self, x: Tensor | NDArray[Any] | Sequence[int] | float | bool, name: str = ""
    ) -> ir.Value:
        """An initializer; small equal ones are stored once.

        Args:
            x: a tensor or array as it is; integers become int64, floats float32.
            name: its name; default: by its content.
        """
        data = _as_data(x)
        small = data.nbytes <= _SHARED_BYTES and not name
        key = (data.dtype, tuple(data.shape), data.tobytes()) if small else ()
        if small and key in self._constants:
            return self._constants[key]
        value = self.initializer(data, name or self._constant_name(data))
        if small:
            self._constants[key] = value
        return value

    def number(self, x: float | bool, dtype: torch.dtype) -> ir.Value:
        """A scalar of a torch dtype."""
        return self.constant(torch.tensor(x, dtype=dtype))

    def initializer(self, data: ir.TensorProtocol, name: str) -> ir.Value:
        """An initializer that is not shared by content."""
        name = unique(name, self._value_names)
        data.name = name
        shape = ir.Shape(data.shape.numpy())
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(data.dtype), const_value=data)
        self.initializers[name] = value
        return value

    def _constant_name(self, data: ir.TensorProtocol) -> str:
        if data.size > _NAMED_ELEMENTS or not data.size:
            return f"{self._scope}.constant" if self._scope else "constant"
        numbers = "_".join(f"{x:g}" for x in data.numpy().astype(np.float64).ravel())
        return f"const.{data.dtype.name.lower()}.{numbers}"

    # --- sizes ---------------------------------------------------------------------------------

    def dim(self, value: ir.Value, axis: int) -> ir.Value:
        """Size of one axis at run time, as an int64 vector of one element."""
        if self.opset >= 15:
            return self.op("Shape", value, start=axis, end=axis + 1)
        return self.op("Gather", self.op("Shape", value), [axis], axis=0)

    def vector(self, items: Iterable[int | ir.Value]) -> ir.Value:
        """An int64 vector of static and dynamic sizes."""
        parts: list[list[int] | ir.Value] = []
        for item in items:
            if isinstance(item, ir.Value):
                parts.append(item)
            elif parts and isinstance(parts[-1], list):
                parts[-1].append(int(item))
            else:
                parts.append([int(item)])
        values = [self.operand(p) for p in parts] or [self.constant(np.zeros(0, np.int64))]
        if len(values) == 1 and values[0] is not None:
            return values[0]
        return self.op("Concat", *values, axis=0)


def unique(name: str, taken: set[str]) -> str:
    """`name`, or `name_1`, `name_2` ... when it is taken; enters it."""
    found, count = name, 0
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found


def data_type(dtype: torch.dtype) -> ir.DataType:
    """ONNX's name of a torch dtype."""
    return from_torch_dtype(dtype)


def describe(value: ir.Value, spec: Shaped) -> None:
    """Write shape and type into a value; dynamic sizes get names."""
    value.shape = ir.Shape([str(s) if isinstance(s, Dim) else s for s in spec.shape])
    value.type = ir.TensorType(data_type(spec.dtype))


def _as_data(x: Tensor | NDArray[Any] | Sequence[int] | float | bool) -> ir.TensorProtocol:
    if isinstance(x, Tensor):
        return TorchTensor(x.detach().cpu().contiguous())
    if isinstance(x, np.ndarray):
        return ir.Tensor(x)
    if isinstance(x, (bool, float)):
        return ir.Tensor(np.array(x, np.float32 if isinstance(x, float) else np.bool_))
    return ir.Tensor(np.array(x, np.int64))
