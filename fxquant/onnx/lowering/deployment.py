"""The CPUs that a file is written for: the same integers, in the form that these compute exactly.

x86 CPUs without VNNI add products of an unsigned and a signed byte in 16 bits, which saturate, and
lose accuracy silently. CPUs with VNNI and ARM CPUs compute exactly, and x86 CPUs with VNNI have no
fast kernel for two unsigned bytes (a product takes twice as long). Hence:

- `any`: int8 weights, the fastest form wherever it is exact. No two products share a weight, so
  that `session.x64quantprecision=1` makes the file exact on CPUs without VNNI, but for products of
  two activations. The report of an export says what is lost there without the option.
- `avx2`: uint8 weights and operands, exact everywhere; as fast as int8 on CPUs without VNNI.
- `vnni`, `arm`: int8 weights, stored once whoever shares them.

**An int8 weight of its own for every product that reads one**, for `any`.

Before: `Conv, Conv <- DequantizeLinear <- weight`
After:  `Conv <- DequantizeLinear <- weight` and `Conv <- DequantizeLinear <- weight_1`

onnxruntime's session option `session.x64quantprecision=1` makes int8 weights unsigned when a file
is loaded, so that CPUs without VNNI compute exactly. It refuses files in which two kernels share a
weight or a zero point: it would replace the same initializer twice. What else reads a weight, such
as a Gather of its rows, keeps reading the first one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from fxquant.errors import ExportError
from fxquant.onnx.lowering.builder import unique
from fxquant.onnx.lowering.unsigned_products import SHIFT, make_unsigned
from fxquant.onnx.ort.fusion_rules import SUMS
from fxquant.onnx.weightless import weight_bytes
from fxquant.targets import DEPLOYMENTS

if TYPE_CHECKING:
    from fxquant.onnx.lowering.result import Lowered, LoweredTensor
    from fxquant.targets import Deploy


_NOTED = 0.05  # share of a model's weights from which copies are worth a word


def written_for(lowered: Lowered, deploy: Deploy) -> Lowered:
    """A lowering in the form that suits the CPUs it is deployed on.

    Args:
        lowered: a lowering with int8 weights; its model is changed in place.
        deploy: "any", "vnni", "avx2" or "arm".

    Raises:
        ExportError: FXQ586, there is no such deployment.
    """
    if deploy not in DEPLOYMENTS:
        what = f"deploy={deploy!r} is unknown"
        raise ExportError("FXQ586", what, fix=f"use one of {', '.join(DEPLOYMENTS)}")
    lowered = dataclasses.replace(lowered, deploy=deploy)
    if deploy == "avx2":
        return unsigned(lowered)
    if deploy == "any":
        return _unshared(lowered)
    return lowered


def unsigned(lowered: Lowered) -> Lowered:
    """A lowering whose products multiply unsigned bytes; its model is changed in place."""
    names = make_unsigned(lowered.model.graph)
    tensors = tuple(_shifted(t) if t.quantized_name in names else t for t in lowered.tensors)
    return dataclasses.replace(lowered, tensors=tensors)


def _shifted(tensor: LoweredTensor) -> LoweredTensor:
    zero = (tensor.zero_point.astype(np.int16) + SHIFT).astype(np.uint8)
    return dataclasses.replace(tensor, zero_point=zero, dtype=ir.DataType.UINT8)


def _unshared(lowered: Lowered) -> Lowered:
    before = weight_bytes(lowered.model)
    added = unshare_weights(lowered.model.graph)
    if added <= _NOTED * before:
        return lowered
    note = (
        f"weights that several products share are stored once for each, {added} bytes more, so "
        'that session.x64quantprecision works; deploy="vnni", "arm" or "avx2" stores them once'
    )
    return dataclasses.replace(lowered, notes=(*lowered.notes, note))


_Way: TypeAlias = tuple[ir.Node, ...]
_Use: TypeAlias = tuple[ir.Node, int]  # a node and which of its inputs


def unshare_weights(graph: ir.Graph) -> int:
    """Give products that share a weight their own copies, in place.

    Args:
        graph: a QDQ graph.

    Returns:
        Bytes of weights that the copies add.
    """
    taken = {value.name for node in graph for value in node.outputs if value.name}
    taken |= set(graph.initializers) | {n.name for n in graph if n.name}
    read: set[ir.Value] = set()  # weights that have their product
    added = 0
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.const_value is None or weight.dtype is not ir.DataType.INT8:
            continue
        for way, use in list(_products(node)):
            if weight in read:
                _unshare(graph, way, use, taken)
                added += weight.const_value.nbytes
            read.add(weight)
    return added


def _products(node: ir.Node, way: _Way = ()) -> Iterator[tuple[_Way, _Use]]:
    """Operands of products, and the nodes from the DequantizeLinear to each of them."""
    way = (*way, node)
    for use in node.outputs[0].uses():
        if use.node.op_type in SUMS:
            yield way, (use.node, use.idx)
        elif use.node.op_type == "Transpose":
            yield from _products(use.node, way)


def _unshare(graph: ir.Graph, way: _Way, use: _Use, taken: set[str]) -> None:
    """A weight and a zero point for one product, in nodes of its own."""
    dequantizer, *moves = way
    scale = dequantizer.inputs[1]
    inputs = [_copied(graph, v, taken) if v is not scale else v for v in dequantizer.inputs]
    if all(_has_one_consumer(node.outputs[0]) for node in way):
        for i, value in enumerate(inputs):
            dequantizer.replace_input_with(i, value)
        return
    copy = _copy(graph, dequantizer, inputs, taken)
    for move in moves:
        copy = _copy(graph, move, copy.outputs, taken)
    product, position = use
    product.replace_input_with(position, copy.outputs[0])


def _has_one_consumer(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _copy(
    graph: ir.Graph, node: ir.Node, inputs: Sequence[ir.Value | None], taken: set[str]
) -> ir.Node:
    """A node that does the same with other inputs, right behind the given one."""
    copy = ir.node(node.op_type, inputs, node.attributes, name=unique(str(node.name), taken))
    made, given = copy.outputs[0], node.outputs[0]
    made.name, made.shape, made.type = unique(str(given.name), taken), given.shape, given.type
    graph.insert_after(node, copy)
    return copy


def _copied(graph: ir.Graph, value: ir.Value | None, taken: set[str]) -> ir.Value | None:
    if value is None or value.const_value is None:
        return value
    name = unique(str(value.name), taken)
    data = ir.Tensor(value.const_value.numpy(), value.const_value.dtype, name=name)
    copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=data)
    graph.register_initializer(copy)
    return copy
