"""Shifts in the data path of chips whose steps are powers of two.

With positions `fp` (a step is `2 ** -fp`) of input, weight, bias and output, the product of a layer
is shifted by

    cut  = fp_w + fp_i - fp_o         into the output
    bias = fp_w + fp_i - fp_b         the bias into the accumulator

and a sum or an elementwise product by

    read  = max(fp_i) - min(fp_i)     the finer operand
    write = min(fp_i) - fp_o          of a sum, into the output
    write = sum(fp_i) - fp_o          of a product

Source: the constraints that the quantizers of the DPU and AIE families adjust positions to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant import ops
from fxquant.placement.dataflow import operands, resolve_grids
from fxquant.quantization.affine import BiasQuantizeDequantize
from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fxquant.quantization import QuantizerBase
    from fxquant.targets import Shifts

Range = tuple[int, int]
Grids = dict[fx.Node, tuple["QuantizerBase | None", ...]]


@dataclass(frozen=True)
class Shift:
    """One shift.

    Attributes:
        node: the operator.
        kind: "cut", "bias", "read" or "write".
        value: the shift; per channel the one farthest from the range.
        allowed: smallest and largest shift.
        inputs: quantizers of the operands.
        weight: quantizer of the weight.
        bias: quantizer of the bias.
        output: quantizer of the result.
    """

    node: fx.Node
    kind: str
    value: int
    allowed: Range
    inputs: tuple[PowerOfTwoQuantizeDequantize, ...]
    weight: PowerOfTwoQuantizeDequantize | None
    bias: PowerOfTwoQuantizeDequantize | None
    output: PowerOfTwoQuantizeDequantize

    @property
    def fits(self) -> bool:
        """Whether the chip can shift so far."""
        return self.allowed[0] <= self.value <= self.allowed[1]


def find_shifts(gm: fx.GraphModule, limits: Shifts) -> Iterator[Shift]:
    """Every shift that a target limits, in the order of the graph.

    Args:
        gm: a calibrated simulated graph; what has other steps than powers of two is left out.
        limits: the ranges.
    """
    grids = resolve_grids(gm)
    for node in gm.graph.nodes:
        row = ops.row_of(node, gm)
        if row is None or node.op != "call_module":
            continue
        found = [grids[n][0] for _, n in operands(node, gm)]
        inputs = tuple(q for q in map(_known, found) if q is not None)
        output = _known(written_grid(node, grids))
        if output is None or not inputs or len(inputs) != len(found):
            continue
        if row.name in ("add", "mul"):
            yield from _elementwise(node, row.name, inputs, output, limits)
        else:
            yield from _layer(node, gm, inputs, output, limits)


def _known(quantizer: QuantizerBase | None) -> PowerOfTwoQuantizeDequantize | None:
    if not isinstance(quantizer, PowerOfTwoQuantizeDequantize) or not quantizer.is_initialized():
        return None
    return quantizer


def written_grid(node: fx.Node, grids: Grids) -> QuantizerBase | None:
    """The grid into which a kernel writes: its own, or that of what it takes in."""
    while grids[node][0] is None and len(node.users) == 1:
        user = next(iter(node.users))
        if user.op != "call_module":
            break
        node = user
    return grids[node][0]


def position(quantizer: PowerOfTwoQuantizeDequantize) -> Range:
    """Smallest and largest position over the channels."""
    found = quantizer.get_position()
    return (0, 0) if found is None else (int(found.min()), int(found.max()))


def _elementwise(
    node: fx.Node, name: str, inputs: tuple[PowerOfTwoQuantizeDequantize, ...],
    output: PowerOfTwoQuantizeDequantize, limits: Shifts,
) -> Iterator[Shift]:  # fmt: skip
    places, out = [position(q)[0] for q in inputs], position(output)[0]
    if len(places) < 2:
        return
    read = max(places) - min(places)
    write = (min(places) if name == "add" else sum(places)) - out
    allowed = limits.write_add if name == "add" else limits.write_mul
    if limits.read is not None and name == "add":
        yield Shift(node, "read", read, limits.read, inputs, None, None, output)
    if allowed is not None:
        yield Shift(node, "write", write, allowed, inputs, None, None, output)


def _layer(
    node: fx.Node, gm: fx.GraphModule, inputs: tuple[PowerOfTwoQuantizeDequantize, ...],
    output: PowerOfTwoQuantizeDequantize, limits: Shifts,
) -> Iterator[Shift]:  # fmt: skip
    module: Any = gm.get_submodule(str(node.target))
    params = dict(module.param_quantizers.active())
    weight = _known(params.get("weight"))
    if weight is None:
        return
    into, out = position(inputs[0])[0], position(output)[0]
    cuts = tuple(w + into - out for w in position(weight))
    if limits.cut is not None:
        value = _farthest(cuts, limits.cut)
        yield Shift(node, "cut", value, limits.cut, inputs, weight, None, output)
    bias = _known(params.get("bias"))
    if limits.bias is None or bias is None or isinstance(bias, BiasQuantizeDequantize):
        return
    low, high = limits.bias
    if limits.bias_floor is not None:
        low = min(0, -(limits.bias_floor - (8 + min(cuts))))
    shifts = [w + into - b for w in position(weight) for b in position(bias)]
    value = _farthest(shifts, (low, high))
    yield Shift(node, "bias", value, (low, high), inputs, weight, bias, output)


def _farthest(values: tuple[int, ...] | list[int], allowed: Range) -> int:
    return max(values, key=lambda v: max(allowed[0] - v, v - allowed[1]))
