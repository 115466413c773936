"""Rounding errors of float32 programs, element by element, around the float64 value.

Values in float16 and bfloat16 carry the roundings to their type, too.

`noise.py` bounds a whole tensor by its peaks, before anything runs. Where a difference exceeds that
bound, this file decides: it computes the segment between the last quantized tensors and the value
in question in float64 on the example, and beside each value how far a correct float32 program may
end up from it. A sum that cancels has a small value and a large error; a long sum has a large one.

Two integers are both right if the float64 value, widened by this error, reaches the intervals that
round to them. If the file held another weight, scale or bias than the simulation, its float64 value
would lie outside of the simulation's interval by more than the error.

The worst case n · u · Σ|a·b| exceeds a step of the grid from some thousand terms on, and would hide
a wrong weight. Roundings of different terms are independent (Higham and Mary, "A new
approach to probabilistic rounding error analysis", 2019): the error of a sum of n terms exceeds
λ · √n · u · Σ|a·b| with a probability below 2·exp(-λ²/2) even if every partial sum were as large as
Σ|a·b|. With λ = 2 that bound of the probability is 27 %; where partial sums grow steadily their
mean square is a third of that, the standard deviation is √n · u · Σ|a·b| / 3, and λ = 2 stands for
six of them (2e-9 an element for a normal distribution). This part is statistical, not a guarantee,
and assumes independent roundings. Reductions of equal terms, which are rounded one way, are traced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.onnx.parity.error_bounds import UNIT, result_unit, unit_of
from fxquant.onnx.parity.error_functions import RULES
from fxquant.onnx.parity.error_rules import BASIC, EXACT, Undecided, Valued, evaluated, narrowed
from fxquant.onnx.qdq import constant, grid_range

Array = NDArray[Any]


@dataclass(frozen=True)
class Noise:
    """Differences at one tensor, judged by the float64 value.

    Attributes:
        explained: for each element, whether both sides are within rounding of the float64 value.
        allowed: for each element, the rounding error of one program: in steps of the grid where the
            tensor is quantized, in units of the value where it is not.
    """

    explained: NDArray[np.bool_]
    allowed: NDArray[np.float64]


class Rounding:
    """Judges differences by the float64 value; what it computed serves every optimization level.

    Args:
        model: the graph; what its segments start from is fed.
        feeds: graph inputs by name, integer tensors of the simulation among them.
    """

    def __init__(self, model: ir.Model, feeds: Mapping[str, Array]) -> None:
        self._model, self._feeds = model, feeds
        self._values = {v.name: v for node in model.graph for v in node.outputs}
        self._found: dict[str, Valued | None] = {}

    def of_integers(self, name: str, ours: Array, theirs: Array) -> Noise | None:
        """Which differences of a quantized tensor are rounding.

        Args:
            name: the output of a QuantizeLinear.
            ours: integers of the simulation.
            theirs: integers of the runtime, of the same shape.

        Returns:
            The judgement, or None where an operator of the segment has no rule here.
        """
        value = self._values.get(name)
        node = value.producer() if value is not None else None
        if node is None or node.op_type != "QuantizeLinear":
            return None
        x, scale = self._valued(node.inputs[0]), constant(node.inputs[1])
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if x is None or scale is None or scale.size != 1 or x.value.shape != ours.shape:
            return None
        low, high = grid_range(node)
        from_zero = x.value / float(scale.reshape(-1)[0])
        at = from_zero + (float(zero.reshape(-1)[0]) if zero is not None else 0.0)
        allowed = x.error / float(scale.reshape(-1)[0])
        # the quotient is rounded, and its sum with the zero point where a kernel adds it first
        allowed += UNIT * (np.abs(from_zero) + np.abs(at))
        with np.errstate(invalid="ignore"):
            within = [_reaches(at, allowed, side, low, high) for side in (ours, theirs)]
        # an error without a bound explains nothing
        return Noise(within[0] & within[1] & np.isfinite(allowed), allowed)

    def of_floats(self, name: str, ours: Array, theirs: Array) -> Noise | None:
        """Which differences of a float value are rounding; as `of_integers`."""
        x = self._valued(self._values.get(name))
        if x is None or x.value.shape != ours.shape:
            return None
        with np.errstate(invalid="ignore"):
            near = (np.abs(ours - x.value) <= x.error) & (np.abs(theirs - x.value) <= x.error)
        return Noise((near & np.isfinite(x.error)) | (ours == theirs), x.error)

    def at(self, name: str) -> Valued | None:
        """A float value with its error, or None where an operator before it has no rule."""
        return self._valued(self._values.get(name))

    def _valued(self, value: ir.Value | None) -> Valued | None:
        name = (value.name if value is not None else None) or ""
        if name not in self._found:
            try:
                self._found[name] = _Segment(self._model, self._feeds).at(value)
            except Undecided:
                self._found[name] = None
        return self._found[name]


def _reaches(at: Array, allowed: Array, integers: Array, low: int, high: int) -> NDArray[np.bool_]:
    """Whether a value within its error rounds to these integers."""
    q = integers.astype(np.float64)
    beneath = (at + allowed >= q - 0.5) | (q <= low)
    above = (at - allowed <= q + 0.5) | (q >= high)
    return np.asarray(beneath & above)


class _Segment:
    """Values of a graph in float64, computed on demand from what is fed."""

    def __init__(self, model: ir.Model, feeds: Mapping[str, Array]) -> None:
        self.opset = model.opset_imports.get("", 21)
        self.known: dict[str, Valued] = {name: Valued.exact(x) for name, x in feeds.items()}
        self.units: dict[str, float] = {}

    def at(self, value: ir.Value | None) -> Valued:
        """A value with its error.

        Raises:
            Undecided: an operator before it has no rule, or its value is not finite.
        """
        if value is None:
            raise Undecided
        pending = [value]
        while pending:
            top = pending[-1]
            node = top.producer()
            if (top.name or "") in self.known or top.const_value is not None:
                pending.pop()
            elif node is None:
                raise Undecided
            elif missing := [v for v in node.inputs if v is not None and not self._has(v)]:
                pending += missing
            else:
                self._compute(node)
                pending.pop()
        return self._of(value)

    def _has(self, value: ir.Value) -> bool:
        return (value.name or "") in self.known or value.const_value is not None

    def _of(self, value: ir.Value) -> Valued:
        if value.name not in self.known and value.const_value is not None:
            found = Valued.exact(value.const_value.numpy())
            unit = unit_of(value.dtype)
            if unit > UNIT and found.value.size == 1:
                # a number of the program: torch takes 0.3 as it is, the file in half precision
                found = narrowed(found, unit)
            self.known[value.name or ""] = found
        return self.known[value.name or ""]

    def _compute(self, node: ir.Node) -> None:
        operands = [None if v is None else self._of(v) for v in node.inputs]
        floats = any(o is not None and o.value.dtype.kind == "f" for o in operands)
        rule = RULES.get(node.op_type)
        with np.errstate(all="ignore"):
            if rule is not None and (floats or node.op_type == "DequantizeLinear"):
                results = rule(node, operands, self.opset)
            elif not floats:
                arrays = [None if o is None else o.value for o in operands]
                results = [Valued.exact(x) for x in evaluated(node, arrays, self.opset)]
            else:
                raise Undecided
        unit = result_unit(node, self._unit)
        first = node.inputs[0] if node.inputs else None
        cast = node.op_type == "Cast" and first is not None and unit > self._unit(first) > 0
        rounds = cast or (node.op_type not in {*EXACT, "Cast"} and unit > UNIT)
        # what is composed of several steps may hold one of them in the narrow type
        times = 1 if node.op_type in BASIC else 2
        for made, result in zip(node.outputs, results, strict=False):
            narrow = rounds and result.value.dtype.kind == "f"
            self.known[made.name or ""] = narrowed(result, times * unit) if narrow else result
            self.units[made.name or ""] = unit

    def _unit(self, value: ir.Value) -> float:
        known = self.units.get(value.name or "")
        return unit_of(value.dtype) if known is None else known
