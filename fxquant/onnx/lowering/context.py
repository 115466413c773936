"""One call of the fx graph as an emitter sees it: arguments by name, values in ONNX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from fxquant.onnx.lowering.builder import Builder, Operand, data_type
from fxquant.onnx.lowering.values import (
    LoweredValue,
    QuantParamValues,
    SizeValue,
    dequantize,
    quantize,
)
from fxquant.onnx.runs.observed import Dim, Shaped

if TYPE_CHECKING:
    from fxquant.onnx.lowering.stored_weights import Arrangement

Table: TypeAlias = tuple[ir.Value, QuantParamValues]
Emitted: TypeAlias = "ir.Value | LoweredValue | Sequence[ir.Value | LoweredValue | None]"


class UnsupportedError(Exception):
    """An emitter cannot say this call in ONNX; torch's exporter is tried next."""


class Surroundings(Protocol):
    """What a call needs from the lowering around it."""

    builder: Builder
    gm: fx.GraphModule
    exported: dict[Any, ir.Model]

    def resolve(self, value: Any) -> Any:
        """fx nodes inside a value -> `LoweredValue`, `SizeValue` or plain values."""

    def parameter(self, tensor: Tensor, name: str, module: nn.Module | None,
                  arrangement: Arrangement) -> ir.Value:  # fmt: skip
        """The value of a weight, dequantized where the module quantizes it."""

    def table(self, tensor: Tensor, name: str, module: nn.Module | None) -> Table | None:
        """The integers of a weight that is read row by row; None where it is not quantized."""

    def reshaped_output(self, call: Call, made: ir.Value) -> LoweredValue | None:
        """A result that was made in another shape, on its grid; None where it has no grid."""


class Call:
    """Arguments and results of one node.

    Attributes:
        node: the fx node.
        arguments: canonical names -> fx nodes and plain values, as `ops.arguments` gives them.
        out: what both runs saw of the result.
        integer: the first operand and the result are integers of one grid.
        inherits: the result lies on the grid of the first operand.
        primary: name of that operand.
        replaced: operands that this call reads on another grid.
    """

    def __init__(
        self, around: Surroundings, node: fx.Node, arguments: Mapping[str, Any], out: Any
    ) -> None:
        self.around = around
        self.builder = around.builder
        self.node = node
        self.arguments = arguments
        self.out = out
        self.integer = False
        self.inherits = False
        self.primary = "input"
        self.replaced: dict[fx.Node, LoweredValue] = {}

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def opset(self) -> int:
        """Version of the ONNX operators."""
        return self.builder.opset

    @property
    def module(self) -> nn.Module | None:
        """The module that is called, if one is."""
        if self.node.op != "call_module":
            return None
        return self.around.gm.get_submodule(str(self.node.target))

    # --- operands ------------------------------------------------------------------------------

    def held(self, name: str) -> LoweredValue:
        """A tensor operand in all its forms.

        Raises:
            UnsupportedError: it is no tensor.
        """
        value = self.resolve(self.arguments[name])
        if not isinstance(value, LoweredValue):
            msg = f"argument {name!r} is {type(value).__name__}, not a tensor"
            raise UnsupportedError(msg)
        return value

    def resolve(self, value: Any) -> Any:
        """fx nodes inside a value -> `LoweredValue`, `SizeValue` or plain values."""
        if isinstance(value, fx.Node) and value in self.replaced:
            return self.replaced[value]
        if isinstance(value, (tuple, list)):
            return [self.resolve(v) for v in value]
        return self.around.resolve(value)

    def tensor(self, name: str = "input") -> ir.Value:
        """A tensor operand."""
        held = self.held(name)
        if self.integer and name == self.primary and held.integers is not None:
            return held.integers
        return held.value(self.builder)

    def optional(self, name: str) -> ir.Value | None:
        """A tensor operand, or None where it is not given."""
        return None if self.arguments.get(name) is None else self.value(self.arguments[name], name)

    def value(self, x: Any, name: str = "", dtype: torch.dtype | None = None) -> ir.Value:
        """Any argument as a tensor: a node, a parameter, a number."""
        found = self.resolve(x)
        if isinstance(found, LoweredValue):
            return self.cast(found.value(self.builder), found.spec.dtype, dtype)
        if isinstance(found, SizeValue):
            scalar = self.op("Squeeze", found.value, [0])
            return self.cast(scalar, found.dtype, dtype)
        if isinstance(found, Tensor):
            return self.cast(self.parameter_of(found, name), found.dtype, dtype)
        if isinstance(found, (bool, int, float)):
            return self.builder.number(found, dtype or torch.result_type(found, found))
        msg = f"argument {name!r} is {type(found).__name__}, not a tensor"
        raise UnsupportedError(msg)

    def cast(self, x: ir.Value, have: torch.dtype, want: torch.dtype | None) -> ir.Value:
        """A Cast where the dtypes differ."""
        if want is None or have == want:
            return x
        return self.op("Cast", x, to=data_type(want))

    def spec(self, name: str = "input") -> Shaped:
        """Shape and dtype of a tensor argument, whatever form it has."""
        return self.spec_of(self.arguments[name], name)

    def spec_of(self, x: Any, name: str = "") -> Shaped:
        """Shape and dtype of a node or tensor."""
        found = self.resolve(x)
        if isinstance(found, LoweredValue):
            return found.spec
        if isinstance(found, Tensor):
            return Shaped(tuple(found.shape), found.dtype)
        msg = f"argument {name!r} is {type(found).__name__}, not a tensor"
        raise UnsupportedError(msg)

    def is_tensor(self, name: str) -> bool:
        """Whether an argument is a tensor."""
        return isinstance(self.resolve(self.arguments.get(name)), (LoweredValue, Tensor))

    def constant(self, name: str) -> Tensor | None:
        """The value of a tensor argument where no input can change it."""
        found = self.resolve(self.arguments[name])
        if isinstance(found, LoweredValue):
            return found.constant
        return found if isinstance(found, Tensor) else None

    def operands(
        self, *names: str, dtype: torch.dtype | None = None
    ) -> tuple[list[ir.Value], torch.dtype]:
        """Operands in the dtype that PyTorch promotes them to, and that dtype."""
        if dtype is None:
            dtype = self.promoted(*names)
        return [self.value(self.arguments[n], n, dtype) for n in names], dtype

    def promoted(self, *names: str) -> torch.dtype:
        """The dtype PyTorch computes these operands in."""
        likes: list[Any] = []
        for name in names:
            found = self.resolve(self.arguments[name])
            if isinstance(found, SizeValue):
                likes.append(1 if found.dtype == torch.int64 else 1.0)
            elif isinstance(found, (bool, int, float)):
                likes.append(found)
            else:
                spec = self.spec(name)
                likes.append(torch.empty((1,) * spec.rank, dtype=spec.dtype, device="meta"))
        result = likes[0]
        for other in likes[1:]:
            dtype = torch.result_type(result, other)
            rank = max((x.dim() for x in (result, other) if isinstance(x, Tensor)), default=0)
            result = torch.empty((1,) * rank, dtype=dtype, device="meta")
        return result.dtype if isinstance(result, Tensor) else torch.result_type(result, result)

    # --- weights -------------------------------------------------------------------------------

    def parameter(self, name: str, arrangement: Arrangement | None = None) -> ir.Value | None:
        """A weight or bias: an initializer, behind a DequantizeLinear where it is quantized."""
        x = self.arguments.get(name)
        if x is None:
            return None
        found = self.resolve(x)
        if (
            isinstance(found, LoweredValue)
            and found.constant is not None
            and arrangement is not None
        ):
            return self.parameter_of(found.constant, name, arrangement, found.name)
        if isinstance(found, Tensor):
            return self.parameter_of(found, name, arrangement)
        value = self.value(x, name)
        if arrangement is not None and arrangement.order is not None:
            return self.op("Transpose", value, perm=arrangement.order)
        return value

    def parameter_of(
        self, tensor: Tensor, name: str, arrangement: Arrangement | None = None, label: str = ""
    ) -> ir.Value:
        """The same for a tensor that the module holds under `name`."""
        from fxquant.onnx.lowering.stored_weights import PLAIN

        module = None if label else self.module
        label = label or f"{self.path}.{name}"
        return self.around.parameter(tensor, label, module, arrangement or PLAIN)

    @property
    def path(self) -> str:
        """What the node is called in ONNX."""
        return path_of(self.node)

    def table(self, name: str) -> Table | None:
        """Integers and grid of a weight that is read row by row; None where it is not quantized."""
        found = self.arguments.get(name)
        if not isinstance(found, Tensor):
            return None
        return self.around.table(found, f"{self.path}.{name}", self.module)

    # --- plain arguments -----------------------------------------------------------------------

    def static(self, name: str) -> Any:
        """A plain argument.

        Raises:
            UnsupportedError: it is known at run time only.
        """
        return self.plain(self.arguments[name], name)

    def plain(self, value: Any, name: str = "") -> Any:
        """A plain value, with constants read out."""
        found = self.resolve(value)
        if (
            isinstance(found, LoweredValue)
            and found.constant is not None
            and not found.constant.dim()
        ):
            return found.constant.item()
        if isinstance(found, (SizeValue, LoweredValue)):
            msg = f"argument {name!r} is known at run time only"
            raise UnsupportedError(msg)
        if isinstance(found, list):
            return tuple(self.plain(v, name) for v in found)
        return found

    def ints(self, name: str, count: int) -> list[int]:
        """An argument that is one integer or one for each spatial axis."""
        value = self.static(name)
        if isinstance(value, (tuple, list)):
            return [int(v) for v in (value * count if len(value) == 1 else value)]
        return [int(value)] * count

    def axis(self, name: str = "dim", operand: str = "input") -> int:
        """A dimension, counted from the left."""
        return int(self.static(name)) % max(self.spec(operand).rank, 1)

    def sizes(self, value: Any) -> list[int | ir.Value]:
        """Sizes, static or dynamic, of an argument such as a shape."""
        found = self.resolve(value)
        items = found if isinstance(found, (list, tuple)) else [found]
        return [v.value if isinstance(v, SizeValue) else int(self.plain(v)) for v in items]

    # --- common nodes --------------------------------------------------------------------------

    def op(self, kind: str, *inputs: Operand, **attributes: Any) -> ir.Value:
        """A node with one output."""
        return self.builder.op(kind, *inputs, **attributes)

    def number(self, x: float, dtype: torch.dtype | None = None) -> ir.Value:
        """A scalar constant, of the first operand's dtype if none is given."""
        return self.builder.number(x, dtype or self.spec(self.primary).dtype)

    def reshape(
        self, x: ir.Value, shape: Sequence[Any], like: LoweredValue | None = None
    ) -> ir.Value:
        """A Reshape to sizes of which some may be dynamic.

        Args:
            x: the tensor.
            shape: ints, `Dim`s and run-time sizes.
            like: tensor whose axes of the same index may lend their dynamic size.
        """
        dynamic = [i for i, s in enumerate(shape) if not isinstance(s, int)]
        if len(dynamic) <= 1 and 0 not in shape and not (dynamic and -1 in shape):
            return self.op("Reshape", x, [-1 if i in dynamic else s for i, s in enumerate(shape)])
        items = [self._size_at(s, i, like) for i, s in enumerate(shape)]
        return self.op("Reshape", x, self.builder.vector(items), allowzero=self._allow_zero(shape))

    def _allow_zero(self, shape: Sequence[Any]) -> int | None:
        return 1 if 0 in shape and self.opset >= 14 else None

    def _size_at(self, size: Any, index: int, like: LoweredValue | None) -> int | ir.Value:
        if isinstance(size, Dim):
            found = self.find_size(size, like, index)
            if found is None:
                msg = f"the size {size} is not found among the operands"
                raise UnsupportedError(msg)
            return found
        return size if isinstance(size, ir.Value) else int(size)

    def find_size(self, size: Dim, like: LoweredValue | None, index: int = 0) -> ir.Value | None:
        """A dynamic size, read from an axis of a tensor that has it."""
        if like is None:
            return None
        axes = [index, *range(like.spec.rank)]
        same = (i for i in axes if i < like.spec.rank and like.spec.shape[i] == size)
        axis = next(same, None)
        return None if axis is None else like.size(self.builder, axis)

    def on_grid(self, x: ir.Value, grid: QuantParamValues, name: str) -> ir.Value:
        """A value that an inner step left on a grid, behind a pair that says so."""
        integers = quantize(self.builder, x, grid, f"{name}_q")
        return dequantize(self.builder, integers, grid, f"{name}_dq")

    def squeeze(self, x: ir.Value, axes: Sequence[int]) -> ir.Value:
        """A Squeeze."""
        return self.op("Squeeze", x, list(axes))

    def unsqueeze(self, x: ir.Value, axes: Sequence[int]) -> ir.Value:
        """An Unsqueeze."""
        return self.op("Unsqueeze", x, list(axes))

    def slice(
        self, x: ir.Value, axis: int, start: int, end: int | None = None, step: int = 1
    ) -> ir.Value:
        """A Slice along one axis."""
        limit = (2**63 - 1 if step > 0 else -(2**63)) if end is None else end
        return self.op("Slice", x, [start], [limit], [axis], [step])

    def reduce(
        self, kind: str, x: ir.Value, axes: Sequence[int] | None, keepdim: bool = False
    ) -> ir.Value:
        """A reduction; axes became an input in opset 18 (for ReduceSum in 13)."""
        keepdims = int(keepdim)
        if axes is None:
            return self.op(kind, x, keepdims=keepdims)
        if self.opset >= 18 or kind == "ReduceSum":
            return self.op(kind, x, list(axes), keepdims=keepdims)
        return self.op(kind, x, axes=list(axes), keepdims=keepdims)

    def split(self, x: ir.Value, axis: int, sizes: Sequence[int]) -> tuple[ir.Value, ...]:
        """A Split into static sizes."""
        if len(sizes) == 1:
            return (x,)
        return self.builder.ops("Split", len(sizes), x, list(sizes), axis=axis)


def path_of(node: fx.Node) -> str:
    """What a node is called in ONNX: a module by its path, a function within its module."""
    if node.op in ("call_module", "get_attr"):
        return str(node.target)
    scope = node.meta.get("module_path")
    return f"{scope}.{node.name}" if scope and node.op != "placeholder" else node.name


def static_sizes(shape: Sequence[Any], what: str) -> list[int]:
    """Sizes that must not depend on the batch.

    Raises:
        UnsupportedError: one does.
    """
    if any(not isinstance(s, int) for s in shape):
        msg = f"{what} has a dynamic size: {', '.join(map(str, shape))}"
        raise UnsupportedError(msg)
    return [int(s) for s in shape]


def product(sizes: Sequence[int]) -> int:
    """Product of sizes."""
    return math.prod(sizes)
