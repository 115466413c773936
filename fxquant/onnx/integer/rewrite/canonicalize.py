"""What onnxruntime rewrites before it looks for integer kernels, as far as kernels depend on it.

The steps come in its order: nodes without effect go, padding moves into its consumer, pairs of
pairs merge, constants are computed, a product and its bias become a Gemm, quantizers pass through
operators that only move values, and floating-point weights and biases in front of a quantizer
become integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fxquant.onnx.integer.kernels.kernel_graph import (
    add_constant,
    attribute,
    bypass,
    constant,
    discard,
    only_consumer,
    ordered,
    present,
    sizes,
    take_output,
)
from fxquant.onnx.integer.rewrite.constant_folding import (
    Compute,
    Merged,
    fold_constants,
    merge_equal_nodes,
    transpose_stored,
)
from fxquant.onnx.integer.rewrite.islands import join_gelus
from fxquant.onnx.integer.rewrite.qdq_pairs import (
    merge_double_pairs,
    move_quantizers,
    separate_dequantizers,
)
from fxquant.onnx.integer.rewrite.quantized_weights import quantize_weights


def normalize(graph: ir.Graph, compute: Compute) -> Merged:
    """Apply every step, in place.

    Args:
        graph: a copy that may change.
        compute: runs one node on arrays.
    """
    merged = Merged()
    separate_dequantizers(graph)
    drop_identities(graph)
    fold_pads(graph)
    merge_double_pairs(graph)
    merge_equal_nodes(graph, merged)
    fold_constants(graph, compute)
    join_products_with_biases(graph)
    separate_dequantizers(graph)
    join_gelus(graph)
    move_quantizers(graph)
    transpose_stored(graph)
    quantize_weights(graph)
    separate_dequantizers(graph)
    return merged


def drop_identities(graph: ir.Graph) -> None:
    """Identity, and Dropout at inference, unless the model's own output needs the name."""
    for node in ordered(graph):
        if node.op_type == "Dropout" and len(node.outputs) > 1 and node.outputs[1].uses():
            continue
        if node.op_type in ("Identity", "Dropout") and not node.outputs[0].is_graph_output():
            bypass(node)


def fold_pads(graph: ir.Graph) -> None:
    """`Pad with zeros -> Conv or pool` becomes an operator with larger padding."""
    for node in ordered(graph):
        consumer = only_consumer(node.outputs[0]) if node.op_type == "Pad" else None
        if consumer is None or not _takes_padding(consumer):
            continue
        pads = _zero_padding(node)
        if pads is None:
            continue
        n = len(pads) // 2
        own = list(attribute(consumer, "pads", ()))
        added = [*pads[2:n], *pads[n + 2 :]]
        total = [a + b for a, b in zip(own, added, strict=True)]
        consumer.attributes.add(ir.AttrInt64s("pads", total))
        bypass(node)


def _takes_padding(node: ir.Node) -> bool:
    if node.op_type not in ("Conv", "AveragePool", "MaxPool") or "pads" not in node.attributes:
        return False
    return attribute(node, "auto_pad", "NOTSET") == "NOTSET" and len(present(node.outputs)) == 1


def _zero_padding(node: ir.Node) -> list[int] | None:
    """Padding of spatial axes with zeros, or None."""
    if attribute(node, "mode", "constant") != "constant" or len(node.inputs) > 3:
        return None
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None:
        return None
    filling = node.inputs[2] if len(node.inputs) > 2 else None
    value = constant(filling)
    if filling is not None and (value is None or np.any(value != 0)):
        return None
    pads = [int(p) for p in given]
    n = len(pads) // 2
    inner = pads[0] or pads[1] or pads[n] or pads[n + 1] if n > 2 else True
    return None if inner or min(pads) < 0 else pads


def join_products_with_biases(graph: ir.Graph) -> None:
    """`MatMul -> Add(bias)` becomes a Gemm, between Reshapes where the operand has more axes."""
    for node in ordered(graph):
        if node.op_type != "MatMul":
            continue
        add = only_consumer(node.outputs[0])
        if add is None or add.op_type != "Add":
            continue
        bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        a, b = sizes(node.inputs[0]), sizes(node.inputs[1])
        if bias is None or a is None or b is None or len(b) != 2 or not _is_float(node):
            continue
        if _bias_fits(sizes(bias), a, b) and (len(a) == 2 or _can_be_flat(node, a, b)):
            _gemm(graph, node, add, bias)


def _is_float(node: ir.Node) -> bool:
    value = node.inputs[0]
    return value is not None and value.dtype in (ir.DataType.FLOAT, None)


def _can_be_flat(node: ir.Node, a: Sequence[int | None], b: Sequence[int | None]) -> bool:
    return None not in a and None not in b and not _follows_attention(node)


def _follows_attention(node: ir.Node) -> bool:
    """`Softmax -> MatMul -> Transpose -> Reshape ->` this product: kept for a fusion of its own."""
    for kind in ("Reshape", "Transpose", "MatMul", "Softmax"):
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None or source.op_type != kind:
            return False
        node = source
    return True


def _bias_fits(
    bias: Sequence[int | None] | None, a: Sequence[int | None], b: Sequence[int | None]
) -> bool:
    if bias is None:
        return False
    n = b[1]
    if len(bias) == 1:
        return n is not None and bias[0] == n
    if len(bias) != 2 or len(a) != 2:
        return False
    if bias[0] == 1:
        return bias[1] == n
    return bias[0] is not None and bias[0] == a[0] and bias[1] in (1, n)


def _gemm(graph: ir.Graph, node: ir.Node, add: ir.Node, bias: ir.Value) -> None:
    a, b = node.inputs[0], node.inputs[1]
    shape = [int(s) for s in sizes(a) or () if s is not None]
    columns = (sizes(b) or [0, 0])[1]
    flat = len(shape) > 2 or (len(shape) == 1 and len(sizes(a) or ()) == 1)
    output = add.outputs[0]
    if flat and a is not None:
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        a = _reshaped(graph, node, a, [rows, shape[-1]], "gemm_input")
    gemm = ir.node("Gemm", [a, b, bias], {"alpha": 1.0, "beta": 1.0}, name=f"{node.name}")
    gemm.meta["covers"] = [node.name, add.name]
    gemm.outputs[0].name = f"{output.name}/gemm"
    gemm.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(add, gemm)
    last = gemm
    if flat:
        target = add_constant(
            graph, f"{node.name}/shape", np.array([*shape[:-1], columns], np.int64)
        )
        last = ir.node("Reshape", [gemm.outputs[0], target], name=f"{node.name}/gemm_output")
        graph.insert_before(add, last)
    take_output(add, last.outputs[0])
    discard(node)


def _reshaped(
    graph: ir.Graph, node: ir.Node, value: ir.Value, shape: list[int], label: str
) -> ir.Value:
    target = add_constant(graph, f"{node.name}/{label}_shape", np.array(shape, np.int64))
    made = ir.node("Reshape", [value, target], name=f"{node.name}/{label}")
    made.outputs[0].name = f"{node.name}/{label}"
    made.outputs[0].shape = ir.Shape(shape)
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(node, made)
    return made.outputs[0]
