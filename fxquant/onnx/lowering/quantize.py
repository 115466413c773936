"""Quantized values: QuantizeLinear behind the producer, one scale and zero point a quantizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import Tensor, fx

from fxquant.onnx.lowering.builder import Builder
from fxquant.onnx.lowering.float_casts import narrowed, require_float32
from fxquant.onnx.lowering.result import LoweredTensor
from fxquant.onnx.lowering.values import LoweredValue, QuantParamValues, quantize
from fxquant.onnx.qparams import QuantParams, encoding_of, integer_grid, stored_integers
from fxquant.onnx.runs.observed import Shaped
from fxquant.quantization.float import FloatQuantizeDequantize

if TYPE_CHECKING:
    from fxquant.onnx.lowering.stored_weights import StoredWeight
    from fxquant.quantization import QuantizerBase

_WIDENED = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})


@dataclass(frozen=True)
class Activation:
    """A quantized activation while names are not final."""

    node: fx.Node
    index: int
    real: ir.Value | None
    held: LoweredValue
    quantizer: QuantizerBase


@dataclass
class Quantized:
    """Makes and remembers quantized values.

    Attributes:
        builder: where nodes go.
        found: activations, and weights with the node that reads them, in the order they were made.
        narrow: activations in a narrow floating-point format, before they are cast.
    """

    builder: Builder
    found: list[Activation | tuple[fx.Node, StoredWeight]] = field(default_factory=list)
    narrow: list[tuple[ir.Value, QuantizerBase]] = field(default_factory=list)
    _grids: dict[tuple[int, int | None], QuantParamValues] = field(default_factory=dict)

    def value(
        self, real: ir.Value, spec: Shaped, quantizer: QuantizerBase, name: str, *, cut: bool = True
    ) -> LoweredValue:
        """A real value on the grid of a quantizer."""
        if isinstance(quantizer, FloatQuantizeDequantize):
            return LoweredValue(
                spec, name, real=narrowed(self.builder, real, quantizer, spec, name)
            )
        if spec.dtype not in _WIDENED:
            require_float32(spec.dtype, name, quantizer)
        if spec.dtype is not torch.float32:  # the simulation computes with float32, too
            real = self.builder.op("Cast", real, to=ir.DataType.FLOAT)
        grid = self.grid(quantizer, spec, name)
        integers = quantize(self.builder, real, grid, f"{name}_q", cut=cut)
        return LoweredValue(spec, name, integers=integers, grid=grid)

    def output(
        self, node: fx.Node, index: int, real: ir.Value, held_as: tuple[Shaped, str],
        quantizer: QuantizerBase, *, cut: bool = True,
    ) -> LoweredValue:  # fmt: skip
        """An output of a node on its grid; `cut` off what the grid does not hold."""
        spec, name = held_as
        held = self.value(real, spec, quantizer, name, cut=cut)
        if held.grid is not None:
            self.found.append(Activation(node, index, real, held, quantizer))
        else:
            self.narrow.append((real, quantizer))
        return held

    def moved(
        self, node: fx.Node, index: int, integers: ir.Value, source: LoweredValue,
        held_as: tuple[Shaped, str], quantizer: QuantizerBase, *, made: ir.Value | None = None,
    ) -> LoweredValue:  # fmt: skip
        """Integers that an operator moved without leaving their grid.

        `made` is the real value that they were quantized from, if this node made it.
        """
        spec, name = held_as
        if integers.name is None:
            self.builder.name_value(integers, f"{name}_q")
        held = LoweredValue(spec, name, integers=integers, grid=source.grid)
        self.found.append(Activation(node, index, made, held, quantizer))
        return held

    def constant(
        self, node: fx.Node, held: LoweredValue, value: Tensor, quantizer: QuantizerBase
    ) -> None:
        """A constant on a grid: integers are stored, there is no QuantizeLinear."""
        if isinstance(quantizer, FloatQuantizeDequantize):
            return
        held.name = f"{held.name}.output"
        held.grid = self.grid(quantizer, held.spec, held.name)
        integers = stored_integers(quantizer, value, held.grid.grid)
        data = ir.Tensor(integers, held.grid.grid.dtype)
        held.integers = self.builder.initializer(data, f"{held.name}_q")
        self.found.append(Activation(node, 0, None, held, quantizer))

    def quantizer_of(self, held: LoweredValue) -> QuantizerBase | None:
        """The quantizer on whose grid a value lies."""
        made = (a for a in self.found if isinstance(a, Activation) and a.held is held)
        return next((a.quantizer for a in made), None)

    def grid(self, quantizer: QuantizerBase, spec: Shaped, name: str) -> QuantParamValues:
        """Scale and zero point; the same initializers for all tensors that share the quantizer."""
        # onnxruntime has no activations of less than a byte: its fused kernels refuse to load
        grid = integer_grid(quantizer, spec.shape, self.builder.opset, least_bits=8)
        key = (id(quantizer), grid.axis)
        if key not in self._grids:
            scale = self.builder.initializer(ir.Tensor(grid.scale), f"{name}_scale")
            zero = ir.Tensor(grid.zero_point, grid.dtype)
            values = QuantParamValues(
                grid, scale, self.builder.initializer(zero, f"{name}_zero_point")
            )
            self._grids[key] = values
        return self._grids[key]

    # --- what came out -------------------------------------------------------------------------

    def tensors(self, kept: set[ir.Value]) -> Iterator[LoweredTensor]:
        """The quantized tensors of the finished graph.

        Args:
            kept: values that are still in it.
        """
        for entry in self.found:
            if isinstance(entry, Activation):
                if entry.held.integers in kept:
                    yield _activation(entry, kept)
            elif entry[1].integers in kept:
                yield _weight(*entry)


def _activation(entry: Activation, kept: set[ir.Value]) -> LoweredTensor:
    held, node = entry.held, entry.node
    module = str(node.target) if node.op == "call_module" else str(node.meta.get("module_path", ""))
    return LoweredTensor(
        node=node.name, index=entry.index, module=module,
        float_name=_name(entry.real, kept), quantized_name=_known_name(held.integers),
        dequantized_name=_name(held.real, kept), kind="activation",
        **_grid_fields(held.grid.grid if held.grid else None, entry.quantizer),
    )  # fmt: skip


def _weight(node: fx.Node, weight: StoredWeight) -> LoweredTensor:
    real = _known_name(weight.real) or None
    return LoweredTensor(
        node=node.name, index=0, module=weight.name.rpartition(".")[0], float_name=weight.name,
        quantized_name=_known_name(weight.integers), dequantized_name=real,
        kind="bias" if weight.bias else "weight",
        **_grid_fields(weight.grid.grid, weight.quantizer),
    )  # fmt: skip


def _grid_fields(grid: QuantParams | None, quantizer: QuantizerBase) -> dict[str, Any]:
    if grid is None:
        msg = "a quantized value lost its grid"
        raise RuntimeError(msg)
    encoding = encoding_of(quantizer)
    return {
        "scale": grid.scale, "zero_point": grid.zero_point, "axis": grid.axis, "block": grid.block,
        "dtype": grid.dtype, "bits": encoding.bitwidth, "symmetric": encoding.symmetry,
        "rounding": getattr(encoding, "rounding", "half_even"), "quantizer": quantizer,
    }  # fmt: skip


def _name(value: ir.Value | None, kept: set[ir.Value]) -> str | None:
    return value.name if value is not None and value in kept else None


def _known_name(value: ir.Value | None) -> str:
    return (value.name if value is not None else None) or ""
