"""Floating-point operators that onnxruntime joins before it runs them: the last bits follow."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from fxquant.onnx.integer.kernels.kernel_graph import (
    MICROSOFT,
    constant,
    describe,
    only_consumer,
    ordered,
    take_output,
)

_NEAR = 1e-4


def join_gelus(graph: ir.Graph) -> None:
    """`x / √2 -> Erf -> + 1 -> · x -> · 0.5`, or with `0.5 · x` first, becomes one Gelu."""
    for erf in ordered(graph):
        if erf.op_type != "Erf":
            continue
        x, added = _scaled_operand(erf), _consumer(erf, "Add")
        if x is None or added is None or not _is(_other(added, erf.outputs[0]), 1.0):
            continue
        last = _last_product(x, added)
        if last is not None:
            gelu = ir.node("Gelu", [x], domain=MICROSOFT, name=last.name)
            gelu.outputs[0].name = f"{last.outputs[0].name}/gelu"
            describe(gelu.outputs[0], last.outputs[0])
            graph.insert_before(last, gelu)
            take_output(last, gelu.outputs[0])
    _discard_unread(graph)


def _scaled_operand(erf: ir.Node) -> ir.Value | None:
    """x of `Erf(x / √2)`."""
    source = erf.inputs[0].producer() if erf.inputs[0] is not None else None
    if source is None or only_consumer(source.outputs[0]) is not erf:
        return None
    for i, operand in enumerate(source.inputs):
        other = source.inputs[1 - i]
        if source.op_type == "Div" and i == 0 and _is(other, math.sqrt(2)):
            return operand
        if source.op_type == "Mul" and _is(other, math.sqrt(0.5)):
            return operand
    return None


def _last_product(x: ir.Value, added: ir.Node) -> ir.Node | None:
    product = _consumer(added, "Mul")
    if product is None:
        return None
    other = _other(product, added.outputs[0])
    if other is x:
        half = _consumer(product, "Mul")
        return half if half is not None and _is(_other(half, product.outputs[0]), 0.5) else None
    half = other.producer() if other is not None else None
    if half is None or half.op_type != "Mul" or x not in half.inputs:
        return None
    return product if _is(_other(half, x), 0.5) else None


def _consumer(node: ir.Node, kind: str) -> ir.Node | None:
    consumer = only_consumer(node.outputs[0])
    return consumer if consumer is not None and consumer.op_type == kind else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The operand of a sum or product beside `value`."""
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _is(value: ir.Value | None, number: float) -> bool:
    array = constant(value)
    return array is not None and array.size == 1 and bool(np.abs(array - number).max() < _NEAR)


def _discard_unread(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)
