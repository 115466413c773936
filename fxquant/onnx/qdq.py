"""What a QDQ pattern is: what ONNX operators do to values, in one table, and what Q and DQ say.

An operator has one row. Every set of operators that move values, keep a grid or have an integer
kernel is taken from the table, so that an operator that is added is known to all that ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Flag, auto
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from fxquant.onnx.qparams import type_range


class Trait(Flag):
    """What an operator does to the values of its data operands, and what onnxruntime does to it."""

    MOVES = auto()  # each result is an operand's element or what fills a gap, whatever the values
    CHOOSES = auto()  # each result is an element of one tensor: the values decide which
    CONTRACTS = auto()  # rounded in one way; neither magnitudes nor differences grow
    COUNTS = auto()  # integers that count things or places, and are never rounded
    SAME_SIZE = auto()  # as many elements as the first operand
    PRODUCTS = auto()  # sums of products with a weight
    # onnxruntime's CPU provider, as its optimized graphs show it
    KERNEL = auto()  # has a kernel for bytes
    BYTES = auto()  # fusion leaves out the pairs around bytes on one grid, at some attributes
    WORDS = auto()  # and those around 16-bit integers
    CARRIES = auto()  # quantizers are moved through it
    VANISHES = auto()  # it is taken out of the graph


_BYTES = Trait.KERNEL | Trait.BYTES
_WORDS = _BYTES | Trait.WORDS
_SHAPED = Trait.MOVES | Trait.SAME_SIZE
_CONTRACTS = Trait.CONTRACTS | Trait.SAME_SIZE

TABLE: Mapping[str, Trait] = MappingProxyType({
    "Reshape": _SHAPED | _WORDS | Trait.CARRIES,
    "Transpose": _SHAPED | _WORDS | Trait.CARRIES,
    "Squeeze": _SHAPED | _WORDS | Trait.CARRIES,
    "Unsqueeze": _SHAPED | _WORDS | Trait.CARRIES,
    "Flatten": _SHAPED | _WORDS,
    "Slice": Trait.MOVES | _WORDS | Trait.CARRIES,
    "Expand": Trait.MOVES | _WORDS,
    "Tile": Trait.MOVES | _WORDS,
    "Gather": Trait.MOVES | _WORDS,
    "GatherElements": Trait.MOVES | _WORDS,
    "GatherND": Trait.MOVES | Trait.KERNEL,
    "ScatterElements": Trait.MOVES,
    "ScatterND": Trait.MOVES,
    "Split": Trait.MOVES | _WORDS,
    "Concat": Trait.MOVES | _BYTES,
    "Where": Trait.MOVES | _BYTES,
    "Pad": Trait.MOVES | Trait.KERNEL,
    "Resize": Trait.MOVES | _BYTES,
    "DepthToSpace": _SHAPED | _BYTES,
    "SpaceToDepth": _SHAPED | Trait.KERNEL,
    "Identity": _SHAPED | Trait.KERNEL | Trait.VANISHES,
    "Dropout": _SHAPED | Trait.VANISHES,
    "MaxPool": Trait.CHOOSES | _BYTES | Trait.CARRIES,
    "NhwcMaxPool": Trait.CHOOSES | _BYTES,
    "GlobalMaxPool": Trait.CHOOSES,
    "ReduceMax": Trait.CHOOSES | _BYTES,
    "ReduceMin": Trait.CHOOSES | _BYTES,
    "Max": Trait.CONTRACTS,
    "Min": Trait.CONTRACTS,
    "Relu": _CONTRACTS,
    "Clip": _CONTRACTS,
    "LeakyRelu": _CONTRACTS | Trait.KERNEL,
    "PRelu": _CONTRACTS,
    "Neg": _CONTRACTS,
    "Abs": _CONTRACTS,
    "Cast": _CONTRACTS,
    "QuantizeLinear": Trait.SAME_SIZE,
    "DequantizeLinear": Trait.SAME_SIZE,
    "Shape": Trait.COUNTS,
    "Size": Trait.COUNTS,
    "ArgMax": Trait.COUNTS | Trait.KERNEL,
    "ArgMin": Trait.COUNTS,
    "NonZero": Trait.COUNTS,
    "Conv": Trait.PRODUCTS | Trait.KERNEL,
    "ConvTranspose": Trait.PRODUCTS,
    "Gemm": Trait.PRODUCTS | Trait.KERNEL,
    "MatMul": Trait.PRODUCTS | Trait.KERNEL,
    "Add": Trait.KERNEL,
    "Mul": Trait.KERNEL,
    "AveragePool": Trait.KERNEL,
    "GlobalAveragePool": Trait.KERNEL,
    "Sigmoid": Trait.KERNEL,
    "Softmax": Trait.KERNEL,
})  # fmt: skip

# which operands the values come from, where it is not the first alone; None: all of them
_DATA: dict[str, tuple[int, ...] | None] = {
    "Concat": None, "Max": None, "Min": None, "Where": (1, 2), "Pad": (0, 2), "ScatterND": (0, 2),
    "ScatterElements": (0, 2),
}  # fmt: skip


def operators(traits: Trait) -> frozenset[str]:
    """The operators that have at least one of the traits."""
    return frozenset(name for name, has in TABLE.items() if has & traits)


COUNTS = operators(Trait.COUNTS)
PRODUCTS = operators(Trait.PRODUCTS)
_MOVING = operators(Trait.MOVES | Trait.CHOOSES)


def keeps_grid(node: ir.Node) -> bool:
    """Whether the results are elements of the data operands: integers on a grid stay on it."""
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    return node.op_type in _MOVING and node.attributes.get_string("reduction", "none") == "none"


def data_operands(node: ir.Node) -> list[ir.Value]:
    """The operands that the values of a result come from; not places, shapes and conditions."""
    places = _DATA.get(node.op_type, (0,))
    return [
        value
        for i, value in enumerate(node.inputs)
        if value is not None and (places is None or i in places)
    ]


def results(node: ir.Node) -> list[ir.Value]:
    """The results that hold such values: a pool gives places beside them, a Dropout its mask."""
    return list(node.outputs if node.op_type == "Split" else node.outputs[:1])


def grid_range(node: ir.Node) -> tuple[int, int]:
    """Smallest and largest integer of a Q or DQ node."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    dtype = zero.const_value.dtype if zero is not None and zero.const_value is not None else None
    return type_range(dtype or ir.DataType.UINT8)


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The array of an initializer or Constant node, or None."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def dequantized(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The float array behind a constant: an initializer, or DequantizeLinear of integers."""
    found = constant(value)
    if found is not None or value is None:
        return found
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
    if integers is None or scale is None:
        return None
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    steps = spread(node, scale, integers.shape)
    shift = 0.0 if zero is None else spread(node, zero, integers.shape).astype(np.float32)
    return np.asarray((integers.astype(np.float32) - shift) * steps)


def spread(
    node: ir.Node, value: np.ndarray[Any, Any], shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Scale or zero point per tensor, axis or block, as it broadcasts against the tensor."""
    if value.size == 1:
        return value.reshape(())
    axis = node.attributes.get_int("axis", 1) % len(shape)
    if value.ndim == 1:
        return value.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    block = node.attributes.get_int("block_size", 0)
    return np.repeat(value, block, axis=axis).take(range(shape[axis]), axis=axis)
