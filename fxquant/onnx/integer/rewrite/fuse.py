"""From QDQ nodes to kernels: each selected group becomes one node of onnxruntime's operators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fxquant.onnx.integer.kernels.kernel_graph import (
    MICROSOFT,
    add_constant,
    bypass,
    discard,
    grid_of,
    is_dequantize,
    is_quantize,
    only_consumer,
    ordered,
    present,
    take_output,
)
from fxquant.onnx.integer.rewrite.match_groups import Group, drops_activation, select
from fxquant.onnx.integer.rewrite.weight_only import KERNEL, stored_weight

_ONNX_KERNELS = frozenset(("QLinearConv", "QLinearMatMul"))


@dataclass(frozen=True)
class Fused:
    """What became of one operator.

    Attributes:
        kernel: type of the node that runs.
        covers: names of all nodes that it stands for.
    """

    kernel: str
    covers: tuple[str, ...]


def fuse(graph: ir.Graph) -> tuple[dict[str, Fused], set[str]]:
    """Replace groups by kernels, in place.

    Returns:
        What became of each operator by its name, and the names of int8 tensors that are now uint8.
    """
    _drop_relus(graph)
    shifted = _make_unsigned(graph)
    done: dict[str, Fused] = {}
    for node in ordered(graph):
        found = select(node)
        if found is None:
            weight = stored_weight(node)
            if weight is not None:
                node.meta["weight"] = weight
                done[str(node.name)] = Fused(KERNEL, (str(node.name), str(weight.name)))
            continue
        kernel, group = found
        names = list(node.meta.get("covers", [node.name]))
        parts = [*group.dequantizers, *group.quantizers]
        if group.activation is not None:
            names.append(group.activation.name)
        covers = (*names, *(p.name for p in parts))
        made = _drop(group) if kernel == "drop" else _replace(graph, kernel, group)
        fused = Fused(made.op_type, tuple(str(n) for n in covers))
        done |= dict.fromkeys((str(n) for n in names), fused)
    graph.sort()
    return done, shifted


def _drop_relus(graph: ir.Graph) -> None:
    """A Relu whose quantizer cuts off the same goes, whatever is in front of it."""
    for node in ordered(graph):
        quantize = only_consumer(node.outputs[0]) if node.op_type == "Relu" else None
        if quantize is None or not is_quantize(quantize) or len(quantize.inputs) != 3:
            continue
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if drops_activation(node, quantize):
            if source is not None and only_consumer(source.outputs[0]) is node:
                source.meta["covers"] = [*source.meta.get("covers", [source.name]), node.name]
            bypass(node)


def _make_unsigned(graph: ir.Graph) -> set[str]:
    """Turn int8 pairs with one consumer into uint8 ones, as onnxruntime does on x86."""
    shifted = set()
    for node in ordered(graph):
        consumer = only_consumer(node.outputs[0]) if is_quantize(node) else None
        if consumer is None or not is_dequantize(consumer):
            continue
        first, second = grid_of(node), grid_of(consumer)
        if first is None or second is None or not (first.explicit and second.explicit):
            continue
        if first.dtype is not ir.DataType.INT8 or second.dtype is not ir.DataType.INT8:
            continue
        if first.zero.size != 1 or second.zero.size != 1 or first.zero.item() != second.zero.item():
            continue
        zero = np.array(int(first.zero.item()) + 128, np.uint8)
        value = add_constant(graph, f"{node.name}/unsigned_zero_point", zero)
        node.replace_input_with(2, value)
        consumer.replace_input_with(2, value)
        node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        shifted.add(str(node.outputs[0].name))
    return shifted


def _drop(group: Group) -> ir.Node:
    """Let an operator that only moves values move integers."""
    node, (source,) = group.node, group.dequantizers
    node.replace_input_with(0, source.inputs[0])
    discard(source)
    for quantize in group.quantizers:
        if quantize.inputs[0] is not None:
            take_output(quantize, quantize.inputs[0])
    return node


def _replace(graph: ir.Graph, kernel: str, group: Group) -> ir.Node:
    node = group.node
    made = ir.node(
        kernel, _operands(graph, kernel, group), {},
        domain="" if kernel in _ONNX_KERNELS else MICROSOFT, name=node.name,
    )  # fmt: skip
    for attr in node.attributes.values():
        made.attributes.add(attr)
    if kernel == "QLinearSoftmax":
        made.attributes.add(ir.AttrInt64("opset", graph.opset_imports.get("", 13)))
    last = group.quantizers[0] if group.quantizers else node
    graph.insert_before(last, made)
    take_output(last, made.outputs[0])
    if group.activation is not None:
        discard(group.activation)
    discard(node)
    discard(*group.dequantizers)
    return made


def _operands(graph: ir.Graph, kernel: str, group: Group) -> list[ir.Value | None]:
    """Inputs in the order of the kernel."""
    given = [_triple(graph, d) for d in group.dequantizers]
    result = _triple(graph, group.quantizers[0])[1:] if group.quantizers else [None, None]
    if kernel == "QLinearConv":
        bias = [given[2][0]] if len(given) > 2 else []
        return [*given[0], *given[1], *result, *bias]
    if kernel == "QGemm":
        bias = [given[2][0] if len(given) > 2 else None]
        return [*given[0], *given[1], *bias, *result]
    if kernel == "MatMulIntegerToFloat":
        (a, a_scale, a_zero), (b, b_scale, b_zero) = given
        return [a, b, a_scale, b_scale, a_zero, b_zero]
    if kernel == "QLinearConcat":
        return [*result, *(v for triple in given for v in triple)]
    if kernel == "QLinearWhere":
        return [group.node.inputs[0], *given[0], *given[1], *result]
    return [*(v for triple in given for v in triple), *result]


def _triple(graph: ir.Graph, node: ir.Node) -> list[ir.Value | None]:
    """Integers, scale and zero point of a Q or DQ node; a missing zero point is made."""
    integers = node.outputs[0] if is_quantize(node) else node.inputs[0]
    if len(present(node.inputs)) > 2:
        return [integers, node.inputs[1], node.inputs[2]]
    grid = grid_of(node)
    dtype = grid.dtype.numpy() if grid is not None else np.dtype(np.uint8)
    shape = () if grid is None else grid.scale.shape
    zero = add_constant(graph, f"{node.name}/zero_point", np.zeros(shape, dtype))
    return [integers, node.inputs[1], zero]
