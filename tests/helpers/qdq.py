"""Small QDQ graphs for tests, written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class Graph:
    """Builds a QDQ graph node by node; values are named after their nodes.

    Example:
        >>> g = Graph(x=("batch", 3))
        >>> y = g.quantized("relu", g.op("Relu", "relu", g["x"]), 0.1, 0)
        >>> [node.op_type for node in g.model(y).graph]
        ['Relu', 'QuantizeLinear', 'DequantizeLinear']
    """

    def __init__(self, seed: int = 0, **inputs: tuple[int | str, ...]) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}
        self.values = {
            name: ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
            for name, shape in inputs.items()
        }

    def __getitem__(self, name: str) -> ir.Value:
        return self.values[name]

    def constant(self, name: str, array: Any) -> ir.Value:
        """An initializer."""
        tensor = ir.Tensor(np.asarray(array), name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.constants[name] = value
        return value

    def op(self, kind: str, name: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """A node called `name` whose output is called `name.out`."""
        node = ir.node(kind, list(inputs), attributes or None, name=name)
        node.outputs[0].name = f"{name}.out"
        self.nodes.append(node)
        return node.outputs[0]

    def quantized(
        self, name: str, value: ir.Value, scale: float, zero: int, dtype: Any = np.uint8
    ) -> ir.Value:
        """`value` behind a Q and a DQ; the integers are called `name_q`."""
        grid = (
            self.constant(f"{name}_scale", np.float32(scale)),
            self.constant(f"{name}_zero", dtype(zero)),
        )
        integers = self.op("QuantizeLinear", f"{name}.q", value, *grid)
        integers.name = f"{name}_q"
        return self.op("DequantizeLinear", f"{name}.dq", integers, *grid)

    def weight(
        self, name: str, shape: tuple[int, ...], *, axis: int = 0, dtype: Any = np.int8
    ) -> tuple[ir.Value, NDArray[np.float32]]:
        """A random integer weight with a scale a channel: (real value, scales)."""
        info = np.iinfo(dtype)
        integers = self.rng.integers(max(info.min, -127), min(info.max, 127), shape, endpoint=True)
        scales = (self.rng.uniform(0.5, 1.0, shape[axis]) / 500).astype(np.float32)
        value = self.op(
            "DequantizeLinear",
            f"{name}.dq",
            self.constant(name, integers.astype(dtype)),
            self.constant(f"{name}_scale", scales),
            self.constant(f"{name}_zero", np.zeros(shape[axis], dtype)),
            axis=axis,
        )
        return value, scales

    def bias(self, name: str, scales: NDArray[np.float32]) -> ir.Value:
        """A random int32 bias on these scales."""
        integers = self.rng.integers(-2000, 2000, scales.shape).astype(np.int32)
        return self.op(
            "DequantizeLinear",
            f"{name}.dq",
            self.constant(name, integers),
            self.constant(f"{name}_scale", scales.astype(np.float32)),
            self.constant(f"{name}_zero", np.zeros(scales.shape, np.int32)),
            axis=0,
        )

    def conv(self, name: str, x: ir.Value, scale: float, shape: tuple[int, ...]) -> ir.Value:
        """A padded convolution of an input with this scale, int8 weight and int32 bias."""
        weight, scales = self.weight(f"{name}.weight", shape)
        bias = self.bias(f"{name}.bias", np.float32(scale) * scales)
        side = shape[-1] // 2
        return self.op("Conv", name, x, weight, bias, pads=[side] * 4)

    def model(self, *outputs: ir.Value, opset: int = 21) -> ir.Model:
        """The model; outputs get type float where they have none."""
        for value in outputs:
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            list(self.values.values()), list(outputs), nodes=self.nodes,
            initializers=list(self.constants.values()), opset_imports={"": opset}, name="test",
        )  # fmt: skip
        return ir.Model(graph, ir_version=10)

    def save(self, folder: Path, *outputs: ir.Value) -> Path:
        """Write the model into a folder."""
        path = folder / "model.onnx"
        ir.save(self.model(*outputs), path)
        return path
