"""Values of the fx graph in their ONNX forms: tensors, integers with a grid, dynamic sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import Tensor

from fxquant.onnx.lowering.builder import Builder, data_type, describe
from fxquant.onnx.qparams import QuantParams
from fxquant.onnx.runs.observed import Dim, Shaped


@dataclass(frozen=True)
class SizeValue:
    """A size known at run time, or a number computed from sizes.

    Attributes:
        value: a vector of one element.
        dtype: int64 for sizes, float64 for other numbers.
    """

    value: ir.Value
    dtype: torch.dtype = torch.int64


@dataclass(frozen=True)
class QuantParamValues:
    """A grid with the initializers that hold its scale and zero point."""

    grid: QuantParams
    scale: ir.Value
    zero_point: ir.Value


@dataclass
class LoweredValue:
    """A tensor, in the forms that were asked for so far.

    Attributes:
        spec: shape and dtype of the real tensor.
        name: what its values are named after.
        real: the tensor itself.
        integers: its integers, when it lies on a grid.
        grid: that grid.
        constant: its value where no input can change it.
        rows: the integers as a matrix, once somebody asked for it.
    """

    spec: Shaped
    name: str
    real: ir.Value | None = None
    integers: ir.Value | None = None
    grid: QuantParamValues | None = None
    constant: Tensor | None = None
    sizes: dict[int, ir.Value] = field(default_factory=dict)
    rows: LoweredValue | None = None

    def on_rows(self, builder: Builder) -> LoweredValue:
        """The integers with all axes but the last in one: `[..., K] -> [rows, K]`."""
        if self.rows is None:
            *outer, last = self.spec.shape
            width = -1 if isinstance(last, Dim) else last
            spec = Shaped((_product(outer), width), self.spec.dtype)
            integers = builder.op("Reshape", self.integers, [-1, width])
            producer = integers.producer()
            if producer is not None:
                builder.name_node(producer, f"{self.name}_rows")
            self.rows = LoweredValue(spec, f"{self.name}_rows", integers=integers, grid=self.grid)
        return self.rows

    def value(self, builder: Builder) -> ir.Value:
        """The real tensor; its DequantizeLinear or initializer is made on first use."""
        if self.real is None:
            if self.integers is not None and self.grid is not None:
                self.real = dequantize(builder, self.integers, self.grid, f"{self.name}_dq")
                if self.spec.dtype is not torch.float32:
                    self.real = builder.op("Cast", self.real, to=data_type(self.spec.dtype))
                describe(self.real, self.spec)
            elif self.constant is not None:
                self.real = builder.constant(self.constant, self.name)
            else:
                msg = f"{self.name} has no form"
                raise RuntimeError(msg)
        return self.real

    def any_value(self, builder: Builder) -> ir.Value:
        """Whatever form there is, for operators that read the shape only."""
        if self.real is None and self.integers is not None:
            return self.integers
        return self.value(builder)

    def size(self, builder: Builder, axis: int) -> ir.Value:
        """Size of one axis at run time."""
        axis %= self.spec.rank
        if axis not in self.sizes:
            self.sizes[axis] = builder.dim(self.any_value(builder), axis)
        return self.sizes[axis]


def _product(sizes: Sequence[int | Dim]) -> int | Dim:
    """Product of sizes; of several dynamic ones a size of its own."""
    static = math.prod(s for s in sizes if isinstance(s, int))
    dynamic = [s for s in sizes if isinstance(s, Dim)]
    if not dynamic:
        return static
    if len(dynamic) > 1:
        return Dim(static, 0, "*".join(f"({s})" for s in dynamic))
    (only,) = dynamic
    return Dim(only.slope * static, only.start * static, only.symbol)


def quantize(
    builder: Builder, real: ir.Value, grid: QuantParamValues, name: str, *, cut: bool = True
) -> ir.Value:
    """A QuantizeLinear; integers outside the grid are cut off first where the type has some."""
    if grid.grid.clipped and cut:
        low, high = grid.grid.bounds
        clipped = builder.op("Clip", real, builder.constant(low), builder.constant(high))
        producer = clipped.producer()
        if producer is not None:
            builder.name_node(producer, f"{name}_clip")
        real = clipped
    return _linear(builder, "QuantizeLinear", real, grid, name)


def dequantize(builder: Builder, integers: ir.Value, grid: QuantParamValues, name: str) -> ir.Value:
    """A DequantizeLinear."""
    return _linear(builder, "DequantizeLinear", integers, grid, name)


def _linear(
    builder: Builder, kind: str, x: ir.Value, grid: QuantParamValues, name: str
) -> ir.Value:
    value = builder.op(
        kind, x, grid.scale, grid.zero_point, axis=grid.grid.axis, block_size=grid.grid.block
    )
    producer = value.producer()
    if producer is not None:
        builder.name_node(producer, name)
    return value
