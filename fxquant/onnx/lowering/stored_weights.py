"""Weights: stored as integers behind one DequantizeLinear, or as they are; shared ones once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from fxquant.onnx.lowering.builder import Builder
from fxquant.onnx.lowering.float_casts import narrow_weight, require_float32
from fxquant.onnx.lowering.values import QuantParamValues, dequantize
from fxquant.onnx.qparams import (
    OPSET_OF_BLOCKS,
    QuantParams,
    encoding_of,
    integer_grid,
    stored_integers,
)
from fxquant.quantization.affine import BiasQuantizeDequantize
from fxquant.quantization.float import FloatQuantizeDequantize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fxquant.quantization import QuantizerBase


@dataclass(frozen=True)
class Arrangement:
    """How a weight is laid out in ONNX.

    Attributes:
        order: axes of the stored tensor, as in `Tensor.permute`.
        rows: rows of the stored tensor, by their index in the given one.
        label: tells stored forms of one weight apart.
        fronts: zeros before each spatial axis of a kernel `[out, in, h, w]`, which is then stored
            as `[out, 4 · in, h / 2, w / 2]`: its 2×2 blocks in the order row, column, channel.
        matrix: how many of the axes, in their order, are batches and how many inputs; the others
            are outputs. It is then stored as `[batches ..., in, out]`.
    """

    order: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    label: str = ""
    fronts: tuple[int, ...] | None = None
    matrix: tuple[int, int] | None = None

    def tensor(self, x: Tensor) -> Tensor:
        """The tensor as it is stored."""
        x = x.detach()
        if self.rows is not None:
            x = x[torch.tensor(self.rows, device=x.device)]
        x = x if self.order is None else x.permute(self.order)
        return x.reshape(self.sizes(x.shape))

    def array(self, x: NDArray[Any]) -> NDArray[Any]:
        """The integers as they are stored."""
        if self.rows is not None:
            x = x[np.array(self.rows)]
        if self.fronts is not None:
            return self._in_blocks(x, self.fronts)
        x = x if self.order is None else np.ascontiguousarray(x.transpose(self.order))
        return x.reshape(self.sizes(x.shape))

    def moved(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Sizes of a tensor whose axes are in order."""
        return tuple(shape) if self.order is None else tuple(shape[i] for i in self.order)

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Sizes of what is stored, of a tensor whose axes are in order."""
        if self.matrix is None:
            return tuple(shape)
        batches, inputs = self.matrix
        end = batches + inputs
        return (*shape[:batches], math.prod(shape[batches:end]), math.prod(shape[end:]))

    def _in_blocks(self, x: NDArray[Any], fronts: tuple[int, ...]) -> NDArray[Any]:
        sizes = zip(x.shape[2:], fronts, strict=True)
        ends = [(front, (size + front) % 2) for size, front in sizes]
        x = np.pad(x, [(0, 0), (0, 0), *ends])
        out, channels, height, width = x.shape
        x = x.reshape(out, channels, height // 2, 2, width // 2, 2).transpose(0, 3, 5, 1, 2, 4)
        return np.ascontiguousarray(x.reshape(out, 4 * channels, height // 2, width // 2))

    def grid(self, grid: QuantParams) -> QuantParams:
        """The grid of the stored integers."""
        if self.rows is not None:
            grid = grid.rows(np.array(self.rows))
        if self.matrix is not None:
            return grid  # as `integer_grid` laid it out
        return grid if self.order is None else grid.permuted(self.order)


PLAIN = Arrangement()
TRANSPOSED = Arrangement(order=(1, 0))


@dataclass(eq=False)
class StoredWeight:
    """A quantized weight in ONNX; `Weights.join` may put another form of it in.

    Attributes:
        name: the float tensor's name, a state_dict key.
        integers: the initializer.
        real: what its DequantizeLinear gives; None where only some rows are dequantized.
        grid: scale and zero point.
        bias: whether it lies on the int32 grid of a bias.
        quantizer: whose integers they are.
    """

    name: str
    integers: ir.Value
    real: ir.Value | None
    grid: QuantParamValues
    bias: bool
    quantizer: QuantizerBase


class Weights:
    """Parameters as values; a tensor used twice in the same form is stored once."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.stored: list[StoredWeight] = []
        self._known: dict[tuple[Any, ...], ir.Value] = {}
        self._zeros: dict[tuple[Any, ...], ir.Value] = {}
        self._integers: dict[tuple[Any, ...], tuple[ir.Value, QuantParamValues]] = {}

    def value(
        self, tensor: Tensor, name: str, quantizer: QuantizerBase | None, arrangement: Arrangement
    ) -> ir.Value:
        """The real weight.

        Args:
            tensor: the parameter.
            name: its key in the state_dict.
            quantizer: its quantizer, or None to store it as it is.
            arrangement: how it is laid out.
        """
        key = (id(tensor), id(quantizer), arrangement)
        if key not in self._known:
            self._known[key] = self._make(tensor, name, quantizer, arrangement)
        return self._known[key]

    def _make(
        self, tensor: Tensor, name: str, quantizer: QuantizerBase | None, arrangement: Arrangement
    ) -> ir.Value:
        if quantizer is None:
            return self.builder.constant(arrangement.tensor(tensor), f"{name}{arrangement.label}")
        if isinstance(quantizer, FloatQuantizeDequantize):
            return narrow_weight(self.builder, tensor, f"{name}{arrangement.label}", quantizer,
                                 arrangement.tensor)  # fmt: skip
        # its DequantizeLinear is float32, and an operator takes one type
        require_float32(tensor.dtype, name, quantizer)
        integers, grid = self._integers_of(tensor, name, quantizer, arrangement)
        real = dequantize(self.builder, integers, grid, f"{integers.name}_dq")
        real.shape, real.type = integers.shape, ir.TensorType(ir.DataType.FLOAT)
        bias = isinstance(quantizer, BiasQuantizeDequantize)
        self.stored.append(StoredWeight(name, integers, real, grid, bias, quantizer))
        sizes = arrangement.sizes(arrangement.moved(tensor.shape))
        return real if len(integers.shape or ()) == len(sizes) else self._matrices(real, sizes)

    def _matrices(self, real: ir.Value, sizes: Sequence[int]) -> ir.Value:
        """Matrices `[..., K, N]` from those that are stored side by side, `[K, ... N]`."""
        *batches, inner, out = sizes
        laid = self.builder.op("Reshape", real, self.builder.vector((inner, *batches, out)))
        last = len(batches) + 1
        return self.builder.op("Transpose", laid, perm=(*range(1, last), 0, last))

    def table(
        self, tensor: Tensor, name: str, quantizer: QuantizerBase
    ) -> tuple[ir.Value, QuantParamValues]:
        """The stored integers of a weight that is read row by row."""
        integers, grid = self._integers_of(tensor, name, quantizer, PLAIN)
        self.stored.append(StoredWeight(name, integers, None, grid, False, quantizer))
        return integers, grid

    def join(self) -> dict[ir.Node, ir.Node]:
        """Let what is stored transposed read what is stored as it is, where both are.

        Before: `Gather <- W [N, K]` and `MatMul <- DequantizeLinear <- W transposed [K, N]`.
        After: `Gather <- W` and `MatMul <- Transpose <- DequantizeLinear <- W`.

        Alone a weight stays transposed: runtimes that do not fold a Transpose into it are slow.

        Returns:
            New node -> the operator that it stands for.
        """
        made: dict[ir.Node, ir.Node] = {}
        for (tensor, quantizer, arrangement), old in list(self._known.items()):
            plain = (tensor, quantizer, PLAIN)
            users = old.consumers()
            if arrangement != TRANSPOSED or not users:
                continue
            if plain in self._integers:
                real = self._read_again(old, *self._integers[plain])
            elif plain in self._known and self._known[plain].const_value is not None:
                real = [], self._known[plain]
            else:
                continue
            first = next(i for i, node in enumerate(self.builder.nodes) if node in users)
            made |= self._turned(old, *real, first)
        return made

    def _read_again(
        self, old: ir.Value, integers: ir.Value, grid: QuantParamValues
    ) -> tuple[list[ir.Node], ir.Value]:
        """A DequantizeLinear of its own for `old`: that of another consumer may come later."""
        real = dequantize(self.builder, integers, grid, f"{integers.name}_dq")
        real.shape, real.type = integers.shape, ir.TensorType(ir.DataType.FLOAT)
        for weight in self.stored:
            if weight.real is old:
                weight.integers, weight.real, weight.grid = integers, real, grid
        return [self.builder.nodes.pop()], real

    def _turned(
        self, old: ir.Value, nodes: list[ir.Node], real: ir.Value, first: int
    ) -> dict[ir.Node, ir.Node]:
        """`Transpose(real)` in the place of `old`, in front of the node of this index."""
        builder = self.builder
        turned = builder.op("Transpose", real, perm=TRANSPOSED.order)
        nodes = [*nodes, builder.nodes.pop()]
        builder.name_node(nodes[-1], f"{real.name}_transposed")
        turned.shape, turned.type = old.shape, old.type
        by = builder.nodes[first]
        for use in list(old.uses()):
            use.node.replace_input_with(use.idx, turned)
        builder.nodes[first:first] = nodes
        return dict.fromkeys(nodes, by)

    def _integers_of(
        self, tensor: Tensor, name: str, quantizer: QuantizerBase, arrangement: Arrangement
    ) -> tuple[ir.Value, QuantParamValues]:
        """The stored integers and their grid, without a DequantizeLinear."""
        key = (id(tensor), id(quantizer), arrangement)
        if key not in self._integers:
            self._integers[key] = self._store(tensor, name, quantizer, arrangement)
        return self._integers[key]

    def _store(
        self, tensor: Tensor, name: str, quantizer: QuantizerBase, arrangement: Arrangement
    ) -> tuple[ir.Value, QuantParamValues]:
        matrix = None if arrangement.matrix is None else arrangement.array
        grid, integers = _integers(tensor, quantizer, self.builder.opset, matrix)
        grid, label = arrangement.grid(grid), f"{name}{arrangement.label}"
        laid = arrangement.array(integers)
        if grid.by_columns and self.builder.opset < OPSET_OF_BLOCKS:
            # [..., K, N] -> [K, ... N]: one axis of channels, which every opset has
            grid, laid = grid.side_by_side, np.moveaxis(laid, -2, 0).reshape(laid.shape[-2], -1)
        data = ir.Tensor(np.ascontiguousarray(laid), grid.dtype)
        value = self.builder.initializer(data, label)
        scale = self.builder.constant(grid.scale, f"{label}_scale")
        return value, QuantParamValues(grid, scale, self._zero_point(grid, label))

    def _zero_point(self, grid: QuantParams, label: str) -> ir.Value:
        """The zero point; one of zeros is shared, but for int8.

        Two int8 weights never share one: onnxruntime's `session.x64quantprecision` replaces it
        together with the weight, and refuses to do so twice.
        """
        zero = ir.Tensor(grid.zero_point, grid.dtype)
        if grid.zero_point.any() or grid.dtype is ir.DataType.INT8:
            return self.builder.initializer(zero, f"{label}_zero_point")
        key = (grid.dtype, grid.zero_point.shape)
        if key not in self._zeros:
            sizes = "x".join(map(str, grid.zero_point.shape)) or "scalar"
            name = f"zero_point.{grid.dtype.name.lower()}.{sizes}"
            self._zeros[key] = self.builder.initializer(zero, name)
        return self._zeros[key]


def _integers(
    tensor: Tensor,
    quantizer: QuantizerBase,
    opset: int,
    matrix: Callable[[NDArray[Any]], NDArray[Any]] | None,
) -> tuple[QuantParams, NDArray[Any]]:
    if isinstance(quantizer, BiasQuantizeDequantize):
        return _bias_integers(tensor, quantizer)
    grid = integer_grid(quantizer, tuple(tensor.shape), opset, matrix=matrix)
    return grid, stored_integers(quantizer, tensor, grid)


def _bias_integers(
    bias: Tensor, quantizer: BiasQuantizeDequantize
) -> tuple[QuantParams, NDArray[Any]]:
    encoding_of(quantizer)  # the typed error where it has none
    with torch.no_grad():
        encoding = quantizer(bias.detach()).encoding
        integers = encoding.quantize(bias.detach().float()).cpu().numpy().astype(np.int32)
    scale = encoding.scale.detach().cpu().numpy().astype(np.float32)
    axis = None if scale.size == 1 else 0
    scale = scale.reshape(()) if axis is None else scale.reshape(-1)
    zero = np.zeros(scale.shape, np.int32)
    low, high = -(2**31), 2**31 - 1
    return QuantParams(scale, zero, ir.DataType.INT32, axis, None, low, high), integers
