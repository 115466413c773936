"""How far float32 sums may move a value before it is quantized, in steps of its grid.

Two correct programs add the same products in another order, so the value before a Q differs in its
last bits; where it lies at a rounding boundary the integers then differ by one step: a *tie*. This
file bounds that difference so that nothing else can hide behind the word.

A walk over the graph carries two numbers a value: `peak`, a bound of its magnitude, and `error`,
an estimate of its float32 noise. At a quantized tensor `peak` is that of its grid (|q - z| · s) and
`error` is zero. A sum of products `Σ x·w` has partial sums of at most A = max|x| · Σ|w|. What two
programs that add in another order differ by is taken as 2·u·A (u = 2^-24). This is no bound: n
terms of one sign may be off by n·u·A, and by about √n·u·A where the roundings are independent.
Measured noise is a tenth of 2·u·A, so it decides most elements without another run; those beyond
it are judged by `error_analysis.py`, element by element, before anything is called wrong.

Operators without such a bound (exponentials, norms, divisions: the float islands) are computed by
different polynomials in torch and in onnxruntime: they add `ISLAND_ULPS` of the tensor's peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from fxquant.onnx.qdq import (
    COUNTS,
    PRODUCTS,
    Trait,
    constant,
    data_operands,
    dequantized,
    grid_range,
    operators,
)

UNIT = 2.0**-24  # half a unit in the last place of 1.0 in float32
_UNITS = {
    ir.DataType.DOUBLE: 2.0**-53,
    ir.DataType.FLOAT: UNIT,
    ir.DataType.FLOAT16: 2.0**-11,
    ir.DataType.BFLOAT16: 2.0**-8,
}
# what is no float even where the operands are
ISLAND_ULPS = (
    32  # measured: torch and onnxruntime differ by up to 10 in exp, erf, tanh, sqrt chains
)
ISLAND_SLACK = 1 / 128  # steps of an 8-bit grid that a float island may drift and still be proven
# relative to a tensor's peak: what floats may differ by beyond their own bound, behind integer
# kernels and behind a float island
FLOAT_SLACK, FLOAT_ISLAND_SLACK = 1e-5, 1e-4
_UNKNOWN = 1024  # stands in for a size that is known at run time only
WIDEST = 1 / 16  # no tolerance is wider on an 8-bit grid, whatever the bound says


@dataclass(frozen=True)
class Bound:
    """Bounds of a float value.

    Attributes:
        peak: magnitude.
        error: float32 noise between two programs.
        island: whether a float island lies between it and the quantized tensors it is made of.
    """

    peak: float
    error: float = 0.0
    island: bool = False


@dataclass(frozen=True)
class Tolerance:
    """What may be excused at one quantized tensor, in steps.

    Attributes:
        tie: distance from a rounding boundary within which one step is a tie.
        drift: distance within which one step is drift that does not fail the proof.
    """

    tie: float
    drift: float


def unit_of(dtype: ir.DataType | None) -> float:
    """Unit roundoff of a type; 0 for integers."""
    return _UNITS.get(dtype, 0.0) if dtype is not None else 0.0


def result_unit(node: ir.Node, unit: Callable[[ir.Value], float]) -> float:
    """Unit roundoff of the type in which an operator gives its result.

    Args:
        node: the operator.
        unit: gives the unit roundoff of an operand's type.
    """
    if node.op_type == "Cast":
        return unit_of(ir.DataType(node.attributes.get_int("to", 1)))
    if node.op_type in COUNTS:
        return 0.0
    # integers become reals of their scale's type
    read = node.inputs[1:2] if node.op_type == "DequantizeLinear" else node.inputs
    return max((unit(v) for v in read if v is not None), default=0.0)


def tolerances(
    model: ir.Model, quantized: Iterable[str], peaks: Mapping[str, float]
) -> dict[str, Tolerance]:
    """Tolerances of the named integer tensors.

    Args:
        model: the lowered graph.
        quantized: names of integer activations: each is a start, exact by construction.
        peaks: largest magnitudes of the float graph inputs.
    """
    bounds = _Walk(peaks).over(model.graph)
    producers = {v.name: node for node in model.graph for v in node.outputs}
    starts = set(quantized)
    return {name: _tolerance(_quantizing(producers[name], starts), bounds) for name in starts}


def _quantizing(node: ir.Node, starts: Container[str | None]) -> ir.Node:
    """The QuantizeLinear behind integers that were moved since, unless they start elsewhere."""
    while node.op_type != "QuantizeLinear":
        source = node.inputs[0] if node.inputs else None
        before = source.producer() if source is not None and source.name not in starts else None
        if before is None:
            return node
        node = before
    return node


def bounds_of(
    model: ir.Model, names: Iterable[str | None], peaks: Mapping[str, float]
) -> dict[str, Bound]:
    """Bounds of float values, by name; what has none is left out."""
    bounds = _Walk(peaks).over(model.graph)
    return {name: bounds[name] for name in names if name and name in bounds}


def _tolerance(node: ir.Node, bounds: Mapping[str, Bound]) -> Tolerance:
    if node.op_type != "QuantizeLinear":  # integers that are moved as they are
        return Tolerance(0.0, 0.0)
    source, scale = node.inputs[0], constant(node.inputs[1])
    bound = bounds.get(source.name or "") if source is not None else None
    low, high = grid_range(node)
    steps = float(high - low)
    step = float(np.min(scale)) if scale is not None else math.inf
    wide = steps / 255  # a 16-bit grid has 257 steps where an 8-bit grid has one
    division = 2 * UNIT * steps
    if bound is None or not math.isfinite(bound.error):
        bound = Bound(0.0, 0.0, island=True)
    tie = bound.error / step + division + (2 * ISLAND_ULPS * UNIT * steps if bound.island else 0.0)
    tie = min(tie, WIDEST * wide, 0.5)
    return Tolerance(tie, min(max(tie, ISLAND_SLACK * wide), 0.5) if bound.island else tie)


class _Walk:
    """Bounds of every float value, in graph order."""

    def __init__(self, peaks: Mapping[str, float]) -> None:
        self.bounds: dict[str, Bound] = {name: Bound(peak) for name, peak in peaks.items()}
        self.units: dict[str, float] = {}

    def over(self, graph: ir.Graph) -> dict[str, Bound]:
        for node in graph:
            if node.op_type in ("QuantizeLinear", "Constant"):
                continue
            rule = _RULES.get(node.op_type, _island)
            bound, unit = rule(self, node), result_unit(node, self._unit)
            if self._narrows(node, rule, unit):
                bound = replace(bound, error=bound.error + 2 * unit * bound.peak)
            for output in node.outputs:
                self.bounds[output.name or ""], self.units[output.name or ""] = bound, unit
        return self.bounds

    def _unit(self, value: ir.Value) -> float:
        known = self.units.get(value.name or "")
        return unit_of(value.dtype) if known is None else known

    def _narrows(self, node: ir.Node, rule: Callable[[_Walk, ir.Node], Bound], unit: float) -> bool:
        """Whether a result is rounded to a type narrower than that of the rule's arithmetic."""
        if node.op_type == "Cast":
            return any(unit > self._unit(v) > 0 for v in node.inputs if v is not None)
        return unit > UNIT and rule is not _keep

    def of(self, value: ir.Value | None) -> Bound:
        """Bound of an operand: known, a constant's, or nothing known (an island of size one)."""
        if value is None:
            return Bound(0.0)
        known = self.bounds.get(value.name or "")
        if known is not None:
            return known
        array = constant(value)
        return Bound(magnitude(array)) if array is not None else Bound(1.0, 0.0, island=True)

    def inputs(self, node: ir.Node) -> list[Bound]:
        return [self.of(value) for value in node.inputs if value is not None]


def magnitude(array: np.ndarray[Any, Any]) -> float:
    """Largest magnitude of an array; what only masks (-1e9, -inf) is left out."""
    if array.size == 0 or array.dtype.kind not in "fiu":
        return 0.0
    sizes = np.abs(array.astype(np.float64, copy=False))
    real = sizes[sizes < 1e4] if sizes.max() >= 1e4 else sizes
    return float(real.max()) if real.size else 0.0


def _dequantize(walk: _Walk, node: ir.Node) -> Bound:
    array = dequantized(node.outputs[0])
    if array is not None:
        return Bound(magnitude(array))
    scale, zero = (
        constant(node.inputs[1]),
        constant(node.inputs[2] if len(node.inputs) > 2 else None),
    )
    if scale is None:
        return walk.of(node.inputs[0])
    low, high = grid_range(node)
    centre = 0.0 if zero is None else zero.astype(np.float64)
    reach = np.maximum(np.abs(low - centre), np.abs(high - centre))
    return Bound(float(np.max(reach * scale.astype(np.float64))))


def _join(bounds: list[Bound], peak: float, error: float) -> Bound:
    return Bound(peak, error, any(b.island for b in bounds))


def _keep(walk: _Walk, node: ir.Node) -> Bound:
    """Values move or shrink: the worst operand's bounds."""
    if node.attributes.get_string("reduction", "none") != "none":  # a scatter that computes
        return _island(walk, node)
    # what a condition is made of may turn it
    operands = walk.inputs(node) if node.op_type == "Where" else map(walk.of, data_operands(node))
    found = list(operands)
    return _join(found, max(b.peak for b in found), max(b.error for b in found))


def _add(walk: _Walk, node: ir.Node) -> Bound:
    found = walk.inputs(node)
    peak = sum(b.peak for b in found)
    rounded = _rounded_bias(node)
    return _join(found, peak, sum(b.error for b in found) + 2 * UNIT * peak + rounded)


def _rounded_bias(add: ir.Node) -> float:
    """How far onnxruntime moves a floating-point bias that it joins with an integer product.

    The bias becomes an int32 on the grid of the product's sums, so it moves by half a step of it.
    """
    products = [p for v in add.inputs if v is not None and (p := v.producer()) is not None]
    if all(constant(v) is None for v in add.inputs) or len(products) != 1:
        return 0.0
    (product,) = products
    if product.op_type != "MatMul":
        return 0.0
    sources = [v.producer() if v is not None else None for v in product.inputs]
    step = 0.5
    for source in sources:
        scale = (
            constant(source.inputs[1]) if source and source.op_type == "DequantizeLinear" else None
        )
        if scale is None:
            return 0.0
        step *= float(np.max(scale))
    return step


def _multiply(walk: _Walk, node: ir.Node) -> Bound:
    a, b = walk.inputs(node)
    peak = a.peak * b.peak
    return _join([a, b], peak, a.error * b.peak + b.error * a.peak + 2 * UNIT * peak)


def _average(walk: _Walk, node: ir.Node) -> Bound:
    found = walk.inputs(node)[:1]
    return _join(found, found[0].peak, found[0].error + 4 * UNIT * found[0].peak)


def _resize(walk: _Walk, node: ir.Node) -> Bound:
    """A position is rounded like the side it lies on, and neighbours lie up to two peaks apart."""
    if node.attributes.get_string("mode", "nearest") == "nearest":
        return _keep(walk, node)
    x = walk.of(node.inputs[0])
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    sides = [d if isinstance(d, int) else _UNKNOWN for d in shape[2:]] if shape is not None else []
    # scale, product and sum of a position, in either of two runtimes; a cubic overshoots a little
    moved = 6 * UNIT * sum(sides or [_UNKNOWN]) * 2.5 * x.peak
    return _join([x], 1.5 * x.peak, 1.5 * x.error + 4 * UNIT * x.peak + moved)


def _products(walk: _Walk, node: ir.Node) -> Bound:
    """Σ x·w: conv, gemm, matmul; a weight that is computed counts with its peak."""
    x, w = walk.of(node.inputs[0]), walk.of(node.inputs[1])
    bias = walk.of(node.inputs[2] if len(node.inputs) > 2 else None)
    norm = _norm(node)
    if norm is None:
        terms = _terms(node)
        norm, grown = terms * w.peak, terms * w.error * x.peak
    else:
        grown = 0.0
    peak = x.peak * norm + bias.peak
    return _join([x, w, bias], peak, x.error * norm + grown + bias.error + 2 * UNIT * peak)


def _norm(node: ir.Node) -> float | None:
    """Largest Σ|w| over the weights of one output channel."""
    weight = dequantized(node.inputs[1]) if node.op_type != "Einsum" else None
    if weight is None or weight.ndim < 1:
        return None
    axes: tuple[int, ...] = (max(weight.ndim - 2, 0),)
    if node.op_type == "Conv":
        axes = tuple(range(1, weight.ndim))
    elif node.op_type == "ConvTranspose":
        axes = (0, *range(2, weight.ndim))
    elif node.op_type == "Gemm" and node.attributes.get_int("transB", False):
        axes = (1,)
    return float(np.abs(weight).sum(axis=axes, dtype=np.float64).max(initial=0.0))


def _terms(node: ir.Node) -> int:
    """Number of terms of a sum of products whose operands are both computed."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    last = shape[-1] if shape is not None and len(shape) else None
    return last if isinstance(last, int) else _UNKNOWN


def _unit(slope: float) -> Callable[[_Walk, ir.Node], Bound]:
    """A smooth function into [-1, 1] whose slope is at most `slope`."""

    def rule(walk: _Walk, node: ir.Node) -> Bound:
        (x,) = walk.inputs(node)[:1]
        return Bound(1.0, slope * x.error + 8 * UNIT, island=True)

    return rule


def _smooth(walk: _Walk, node: ir.Node) -> Bound:
    """GELU and its kin: |f(x)| <= |x| and a slope of at most 1.13."""
    (x,) = walk.inputs(node)[:1]
    return Bound(x.peak, 1.13 * x.error + 8 * UNIT * x.peak, island=True)


def _island(walk: _Walk, node: ir.Node) -> Bound:
    found = walk.inputs(node)
    return Bound(max((b.peak for b in found), default=1.0), 0.0, island=True)


_RULES: dict[str, Callable[[_Walk, ir.Node], Bound]] = {
    **dict.fromkeys(operators(Trait.MOVES | Trait.CHOOSES | Trait.CONTRACTS), _keep),
    **dict.fromkeys(PRODUCTS, _products),
    **dict.fromkeys(("Add", "Sub", "Sum"), _add),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), _average),
    "Resize": _resize,
    **dict.fromkeys(("Gelu", "QuickGelu", "HardSwish", "Mish", "Elu", "Selu", "Celu"), _smooth),
    "Mul": _multiply,
    "DequantizeLinear": _dequantize,
    "Sigmoid": _unit(0.25),
    "HardSigmoid": _unit(1.0),
    "Tanh": _unit(1.0),
    "Erf": _unit(1.13),
    "Softmax": _unit(1.0),
}
