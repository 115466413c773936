"""Rules of the lint about groups: what runs in floating point, or otherwise than it is written.

None of it is wrong by the letter of ONNX. It is slow, or the optimized run computes something else
than the file says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from fxquant.onnx.lint.structure import (
    Finding,
    array,
    consumers_of,
    name_of,
    operand,
    producer,
    same_grid,
)
from fxquant.onnx.qdq import Trait, grid_range, keeps_grid, operators

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
_SHRINKS = 1 / 512  # half a step of the result's grid
_MOVING = operators(Trait.BYTES) - {"Concat"}  # whose operands have grids of their own


def check_groups(model: ir.Model) -> list[Finding]:
    """All findings, rule by rule."""
    nodes = list(model.graph.all_nodes())
    return [f for rule in _RULES for f in rule(nodes)]


def _unquantized_outputs(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        if node.op_type != "Conv" or not all(producer(operand(node, i), _DQ) for i in (0, 1)):
            continue
        last = _behind_activations(node)
        if any(r.op_type == _Q for r in consumers_of(last)):
            continue
        severity = "note" if last.outputs[0].is_graph_output() else "warning"
        what = "its output is not quantized: it runs in floating point"
        yield Finding("FXQ572", severity, name_of(node), what, "put a QuantizeLinear behind it")


def _behind_activations(node: ir.Node) -> ir.Node:
    """The Relu or Clip that alone reads the node, and so on."""
    while len(users := consumers_of(node)) == 1 and users[0].op_type in ("Relu", "Clip"):
        node = users[0]
    return node


def _float_biases(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        layer = _layer_of_bias(node)
        if layer is None or not all(producer(operand(layer, i), _DQ) for i in (0, 1)):
            continue
        quantized = any(r.op_type == _Q for r in consumers_of(_behind_activations(node)))
        if quantized:
            what = "its bias is floating point: the optimized run rounds it to the int32 grid"
        elif node.op_type == "Conv":
            continue  # FXQ572 says more
        else:
            what = "its bias is floating point and its output is not quantized: it runs in float"
        fix = "store the bias as int32 with input scale × weight scale"
        yield Finding("FXQ573", "note" if quantized else "warning", name_of(node), what, fix)


def _layer_of_bias(node: ir.Node) -> ir.Node | None:
    """The layer to which a node adds a stored floating-point bias: a Conv or Gemm is its own."""
    if node.op_type in ("Conv", "Gemm"):
        return node if _is_float(operand(node, 2)) else None
    if node.op_type != "Add":
        return None
    product = next((p for v in node.inputs if (p := producer(v, "MatMul"))), None)
    return product if product is not None and any(map(_is_float, node.inputs)) else None


def _is_float(value: ir.Value | None) -> bool:
    found = array(value)
    return found is not None and found.dtype == np.float32


def _softmax_ranges(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        quantize = next((r for r in consumers_of(node) if r.op_type == _Q), None)
        step = _step(quantize) if node.op_type == "Softmax" else None
        if quantize is None or step is None:
            continue
        zero = array(operand(quantize, 2))
        at = int(zero.reshape(-1)[0]) if zero is not None and zero.size else 0
        low, high = ((q - at) * step for q in grid_range(quantize))
        if low > 0 or high < 1 - 1.5 * step:  # the usual grid of 256 steps ends one step below 1
            what = (
                f"its grid covers {low:.3g} to {high:.3g}, its values 0 to 1: the rest is cut off"
            )
            yield Finding("FXQ574", "warning", name_of(node), what, "use scale 1/256, zero point 0")
        whole = np.floor(np.float32(1) / np.float32(step))  # as the integer kernel does
        lost = 1 - float(whole) * step
        if producer(operand(node, 0), _DQ) and abs(lost) > _SHRINKS:
            what = (
                f"the integer softmax rounds 1/scale down to {whole:.0f}: results lose {lost:.1%}"
            )
            yield Finding("FXQ574", "warning", name_of(node), what, "use scale 1/256")


def _step(node: ir.Node | None) -> float | None:
    """The one scale of a Q or DQ node, if it is a proper one."""
    scale = array(operand(node, 1)) if node is not None else None
    if scale is None or scale.size != 1 or not 0 < float(scale.reshape(())) < np.inf:
        return None
    return float(scale.reshape(()))


def _grids_of_moves(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        if node.op_type not in _MOVING or not keeps_grid(node):
            continue
        before = producer(operand(node, 0), _DQ)
        after = [r for r in consumers_of(node) if r.op_type == _Q]
        if before is None or len(after) != 1 or array(operand(before, 0)) is not None:
            continue
        if not same_grid(before, after[0]) and len(consumers_of(node)) == 1:
            what = "its output has another grid than its input: it runs in floating point"
            fix = "values only move here: use one scale and zero point on both sides"
            yield Finding("FXQ575", "warning", name_of(node), what, fix)


def _grids_of_concats(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        sources = [producer(v, _DQ) for v in node.inputs]
        after = next((r for r in consumers_of(node) if r.op_type == _Q), None)
        if node.op_type != "Concat" or after is None:
            continue
        if None in sources and any(sources):
            what = "some operands are quantized and some are not: it runs in floating point"
            yield Finding("FXQ576", "warning", name_of(node), what, "quantize every operand")
        apart = sum(s is not None and not same_grid(s, after) for s in sources)
        if apart:
            what = (
                f"{apart} of {len(sources)} operands are moved to another grid, and rounded again"
            )
            yield Finding("FXQ576", "note", name_of(node), what, "give all of them one grid")


_RULES: tuple[Callable[[list[ir.Node]], Iterator[Finding]], ...] = (
    _unquantized_outputs, _float_biases, _softmax_ranges, _grids_of_moves, _grids_of_concats,
)  # fmt: skip
