"""One node as a kernel sees it, and the register of kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from fxquant.onnx.integer.kernels.arithmetic import Array
from fxquant.onnx.integer.kernels.kernel_graph import attribute
from fxquant.onnx.integer.kernels.lanes import Lanes

Result: TypeAlias = "Array | Sequence[Array | None]"


class UnsupportedError(Exception):
    """A kernel cannot run this node; onnxruntime itself is asked."""


@dataclass(frozen=True)
class KernelCall:
    """A node with its operands.

    Attributes:
        node: the node.
        operands: arrays; None where an optional one is omitted.
        opset: version of the ONNX operators.
        lanes: how the CPU adds float32 numbers.
        saturates: whether products of an unsigned and a signed byte saturate two by two.
    """

    node: ir.Node
    operands: Sequence[Array | None]
    opset: int
    lanes: Lanes
    saturates: bool = False

    @property
    def arrays(self) -> list[Array]:
        """Operands up to the first omitted one."""
        found: list[Array] = []
        for x in self.operands:
            if x is None:
                break
            found.append(x)
        return found

    def array(self, index: int) -> Array:
        """An operand that is required.

        Raises:
            UnsupportedError: it is omitted.
        """
        x = self.optional(index)
        if x is None:
            msg = f"operand {index} is omitted"
            raise UnsupportedError(msg)
        return x

    def optional(self, index: int) -> Array | None:
        """An operand, or None where it is omitted."""
        return self.operands[index] if index < len(self.operands) else None

    def whole(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(attribute(self.node, name, default))

    def number(self, name: str, default: float) -> float:
        """A number attribute."""
        return float(attribute(self.node, name, default))

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        return str(attribute(self.node, name, default))

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        """A list of integers."""
        return [int(x) for x in attribute(self.node, name, default)]

    def axes(self, index: int = 1, name: str = "axes") -> list[int] | None:
        """Axes, given as an operand (newer operators) or as an attribute; None where not given."""
        given = self.optional(index)
        if given is not None:
            return [int(a) for a in given.reshape(-1)]
        found = attribute(self.node, name, None)
        return None if found is None else [int(a) for a in found]


Kernel = Callable[[KernelCall], Result]
_KERNELS: dict[str, Kernel] = {}


def kernel(*names: str) -> Callable[[Kernel], Kernel]:
    """Enter a function as the kernel of these operators."""

    def enter(function: Kernel) -> Kernel:
        _KERNELS.update(dict.fromkeys(names, function))
        return function

    return enter


def kernels() -> Mapping[str, Kernel]:
    """All kernels by operator type."""
    return _KERNELS
