"""What onnxruntime rewrites before it looks for integer kernels, as far as kernels depend on it.

Each function is one of its steps, in its order: nodes without effect go, padding moves into its
reader, pairs of pairs merge, constants are computed, a product and its bias become a Gemm,
quantizers pass through operators that only move values, and floating-point weights and biases in
front of a quantizer become integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.onnx.integer.graph import (
    Grid,
    add_constant,
    attribute,
    bypass,
    constant,
    describe,
    discard,
    grid_of,
    is_dequantize,
    is_quantize,
    only_reader,
    ordered,
    present,
    readers,
    sizes,
)

Compute = Callable[[ir.Node, list[NDArray[Any] | None]], Sequence[NDArray[Any] | None]]

# operators through which a quantizer moves; not Flatten, Split, Gather, Concat, pools that average
MOVABLE = frozenset(("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"))
_NEVER_FOLDED = frozenset(
    ("DequantizeLinear", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
     "Bernoulli", "Multinomial", "Dropout", "If", "Loop", "Scan")
)  # fmt: skip


@dataclass
class Merged:
    """What became one because it computes the same.

    Attributes:
        nodes: name of a node that is gone -> the one that stands for it.
        values: the same for integers.
    """

    nodes: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)


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
    move_quantizers(graph)
    transpose_stored(graph)
    quantize_weights(graph)
    separate_dequantizers(graph)
    return merged


def separate_dequantizers(graph: ir.Graph) -> None:
    """Give every reader its own DequantizeLinear."""
    for node in ordered(graph):
        if not is_dequantize(node):
            continue
        uses = list(node.outputs[0].uses())
        keep = 0 if node.outputs[0].is_graph_output() else 1
        for count, use in enumerate(uses[keep:], 1):
            copy = ir.node(
                "DequantizeLinear", list(node.inputs), {}, domain=node.domain,
                name=f"{node.name}/{count}",
            )  # fmt: skip
            for attr in node.attributes.values():
                copy.attributes.add(attr)
            copy.outputs[0].name = f"{node.outputs[0].name}/{count}"
            describe(copy.outputs[0], node.outputs[0])
            graph.insert_after(node, copy)
            use.node.replace_input_with(use.idx, copy.outputs[0])


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
        reader = only_reader(node.outputs[0]) if node.op_type == "Pad" else None
        if reader is None or not _takes_padding(reader):
            continue
        pads = _zero_padding(node)
        if pads is None:
            continue
        n = len(pads) // 2
        own = list(attribute(reader, "pads", ()))
        added = [*pads[2:n], *pads[n + 2 :]]
        total = [a + b for a, b in zip(own, added, strict=True)]
        reader.attributes.add(ir.AttrInt64s("pads", total))
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


# --- pairs of pairs ------------------------------------------------------------------------------


def merge_double_pairs(graph: ir.Graph) -> None:
    """`Q1 -> DQ1 -> Q2 -> DQ2` becomes one pair on the grid that both cover."""
    for node in ordered(graph):
        chain = _double_pair(node)
        if chain is None:
            continue
        first, _, second, last = chain
        grids = [grid_of(n) for n in chain]
        a, b = grids[0], grids[2]
        if a is None or b is None or any(g is None for g in grids):
            continue
        if not (a.equals(_sure(grids[1])) and b.equals(_sure(grids[3]))) or a.dtype is not b.dtype:
            continue
        if a.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
            continue
        last.replace_input_with(0, first.outputs[0])
        discard(second, node)
        if not a.equals(b):
            _set_grid(graph, (first, last), *_common_grid(a, b))


def _sure(grid: Grid | None) -> Grid:
    if grid is None:
        msg = "a grid is missing"
        raise RuntimeError(msg)
    return grid


def _double_pair(node: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node, ir.Node] | None:
    """The four nodes around an inner DequantizeLinear."""
    if not is_dequantize(node) or node.inputs[0] is None:
        return None
    first, second = node.inputs[0].producer(), only_reader(node.outputs[0])
    if first is None or second is None or not is_quantize(first) or not is_quantize(second):
        return None
    last = only_reader(second.outputs[0])
    if only_reader(first.outputs[0]) is not node or last is None or not is_dequantize(last):
        return None
    return first, node, second, last


def _common_grid(a: Grid, b: Grid) -> tuple[NDArray[np.float32], NDArray[Any]]:
    dtype = a.zero.dtype
    low, high = np.float32(np.iinfo(dtype).min), np.float32(np.iinfo(dtype).max)
    edges = [
        ((low - np.float32(g.zero.item())) * g.scale, (high - np.float32(g.zero.item())) * g.scale)
        for g in (a, b)
    ]
    bottom, top = max(e[0] for e in edges), min(e[1] for e in edges)
    scale = np.float32((top - bottom) / np.float32(high - low))
    zero = low - bottom / scale
    rounded = np.trunc(zero + np.copysign(np.float32(0.5), zero))  # away from zero, as C rounds
    return scale, np.array(rounded).astype(dtype)


def _set_grid(
    graph: ir.Graph, nodes: Sequence[ir.Node], scale: NDArray[np.float32], zero: NDArray[Any]
) -> None:
    name = f"{nodes[0].name}/merged"
    values = (
        add_constant(graph, f"{name}_scale", np.asarray(scale, np.float32).reshape(())),
        add_constant(graph, f"{name}_zero_point", np.asarray(zero).reshape(())),
    )
    for node in nodes:
        for i, value in enumerate(values, 1):
            node.replace_input_with(i, value)


def merge_equal_nodes(graph: ir.Graph, merged: Merged) -> None:
    """Nodes that compute the same from the same become one; small constants count by content."""
    known: dict[tuple[Any, ...], ir.Node] = {}
    for node in ordered(graph):
        if node.op_type in _NEVER_MERGED or any(v.is_graph_output() for v in node.outputs):
            continue
        first = known.setdefault(_identity(node), node)
        if first is node:
            continue
        for mine, theirs in zip(node.outputs, first.outputs, strict=True):
            for use in list(mine.uses()):
                use.node.replace_input_with(use.idx, theirs)
            merged.values[str(mine.name)] = str(theirs.name)
        merged.nodes[str(node.name)] = str(first.name)
        discard(node)


_NEVER_MERGED = frozenset(("If", "Loop", "Scan", *_NEVER_FOLDED)) - {"DequantizeLinear"}
_SHARED_ELEMENTS = 8
_PLAIN = frozenset(
    (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING,
     ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS)
)  # fmt: skip


def _identity(node: ir.Node) -> tuple[Any, ...]:
    """What two nodes have in common that compute the same."""
    inputs = tuple(_value_identity(v) for v in node.inputs)
    given = node.attributes.values()
    if any(a.type not in _PLAIN for a in given):
        return (id(node),)
    attributes = tuple(sorted((a.name, str(a.value)) for a in given))
    return node.domain, node.op_type, inputs, attributes, len(node.outputs)


def _value_identity(value: ir.Value | None) -> Any:
    array = constant(value)
    if value is None or array is None or array.size > _SHARED_ELEMENTS:
        return id(value)
    return str(array.dtype), array.shape, array.tobytes()


# --- constants -----------------------------------------------------------------------------------


def fold_constants(graph: ir.Graph, compute: Compute) -> None:
    """Compute what no input can change; a DequantizeLinear stays, so that its integers are seen."""
    for node in ordered(graph):
        given = present(node.inputs)
        if node.op_type in _NEVER_FOLDED or not given:
            continue
        if any(constant(v) is None for v in given) or any(
            v.is_graph_output() for v in node.outputs
        ):
            continue
        results = compute(node, [constant(v) for v in node.inputs])
        for value, array in zip(node.outputs, results, strict=False):
            if array is not None and value.uses():
                made = add_constant(graph, str(value.name), np.asarray(array))
                for use in list(value.uses()):
                    use.node.replace_input_with(use.idx, made)
        discard(node)


def transpose_stored(graph: ir.Graph) -> None:
    """`stored integers -> DQ -> Transpose` becomes `transposed integers -> DQ`."""
    for node in ordered(graph):
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type != "Transpose" or source is None or not is_dequantize(source):
            continue
        stored, grid = constant(source.inputs[0]), grid_of(source)
        if stored is None or grid is None or node.outputs[0].is_graph_output():
            continue
        if grid.scale.ndim > 1 or source.inputs[0] is None or source.inputs[0].const_value is None:
            continue
        order = list(attribute(node, "perm", range(stored.ndim)[::-1]))
        moved = np.ascontiguousarray(stored.transpose(order))
        value = add_constant(graph, f"{node.name}/stored", moved)
        # integers below a byte keep their type
        value.const_value = ir.Tensor(moved, source.inputs[0].const_value.dtype, name=value.name)
        value.type = ir.TensorType(source.inputs[0].const_value.dtype)
        source.replace_input_with(0, value)
        if grid.scale.size > 1:
            axis = attribute(source, "axis", 1) % stored.ndim
            source.attributes.add(ir.AttrInt64("axis", order.index(axis)))
        describe(source.outputs[0], node.outputs[0])
        bypass(node)


# --- products ------------------------------------------------------------------------------------


def join_products_with_biases(graph: ir.Graph) -> None:
    """`MatMul -> Add(bias)` becomes a Gemm, between Reshapes where the operand has more axes."""
    for node in ordered(graph):
        if node.op_type != "MatMul":
            continue
        add = only_reader(node.outputs[0])
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
        target = add_constant(graph, f"{node.name}/shape", np.array([*shape[:-1], columns], np.int64))
        last = ir.node("Reshape", [gemm.outputs[0], target], name=f"{node.name}/gemm_output")
        graph.insert_before(add, last)
    take_output(add, last)
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


def take_output(old: ir.Node, new: ir.Node, index: int = 0) -> None:
    """Let `new` make what `old` made, under the same name, and remove `old`."""
    graph, value, made = old.graph, old.outputs[index], new.outputs[0]
    if graph is None:
        return
    describe(made, value)
    for use in list(value.uses()):
        use.node.replace_input_with(use.idx, made)
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = made
    made.name, value.name = value.name, f"{value.name}/old"
    discard(old)


# --- quantizers that move ------------------------------------------------------------------------


def move_quantizers(graph: ir.Graph) -> None:
    """Put a pair on both sides of operators that only move values."""
    nodes = list(ordered(graph))
    for node in nodes:
        if is_quantize(node):
            _move_backward(graph, node)
    for node in list(ordered(graph)):
        if is_dequantize(node):
            _move_forward(graph, node)


def _scalar_grid(node: ir.Node) -> bool:
    grid = grid_of(node)
    return grid is not None and grid.single


def _move_backward(graph: ir.Graph, quantize: ir.Node) -> None:
    """`MaxPool -> Q` becomes `Q -> DQ -> MaxPool -> Q`."""
    if not _scalar_grid(quantize):
        return
    value = quantize.inputs[0]
    while value is not None and (mover := _mover(value)) is not None:
        value = mover.inputs[0]
        source = value.producer() if value is not None else None
        if value is None or only_reader(value) is not mover or constant(value) is not None:
            return
        if is_dequantize(source):
            return
        _insert_pair(graph, quantize, value, [(mover, 0)])


def _mover(value: ir.Value) -> ir.Node | None:
    """The operator that only moved this value, if its one reader is on the way."""
    node = value.producer()
    if node is None or node.op_type not in MOVABLE or value.is_graph_output():
        return None
    return node if len(value.uses()) == 1 and len(present(node.outputs)) == 1 else None


def _move_forward(graph: ir.Graph, dequantize: ir.Node) -> None:
    """`DQ -> Reshape` becomes `DQ -> Reshape -> Q -> DQ`."""
    mover = only_reader(dequantize.outputs[0])
    if mover is None or not _scalar_grid(dequantize) or mover.inputs[0] is not dequantize.outputs[0]:
        return
    pending = [mover]
    while pending:
        node = pending.pop()
        value = node.outputs[0]
        if node.op_type not in MOVABLE or value.is_graph_output():
            continue
        uses = [(u.node, u.idx) for u in value.uses() if not is_quantize(u.node)]
        if uses:
            _insert_pair(graph, dequantize, value, uses)
            pending += [user for user, index in uses if index == 0]


def _insert_pair(
    graph: ir.Graph, like: ir.Node, value: ir.Value, uses: list[tuple[ir.Node, int]]
) -> None:
    """A Q behind a value, and a DQ of its own in front of each of these readers."""
    grid, inputs = grid_of(like), list(like.inputs[1:3])
    quantize = ir.node("QuantizeLinear", [value, *inputs], name=f"{value.name}/q")
    quantize.outputs[0].name = f"{value.name}/q"
    describe(quantize.outputs[0], value, grid.dtype if grid is not None else None)
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, quantize)
    else:
        graph.insert_before(next(iter(graph)), quantize)
    for count, (reader, index) in enumerate(uses):
        made = ir.node(
            "DequantizeLinear", [quantize.outputs[0], *inputs], name=f"{value.name}/dq{count}"
        )
        made.outputs[0].name = f"{value.name}/dq{count}"
        describe(made.outputs[0], value)
        graph.insert_after(quantize, made)
        reader.replace_input_with(index, made.outputs[0])


# --- weights that onnxruntime quantizes itself ---------------------------------------------------


def quantize_weights(graph: ir.Graph) -> None:
    """Float weights and biases between a DQ and a Q become integers, per tensor (trap T4)."""
    for node in ordered(graph):
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or not _leads_to_quantizer(node):
            continue
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None or not is_dequantize(source) or not _scalar_grid(source):
            continue
        _quantize_operands(graph, node, source)


def _leads_to_quantizer(node: ir.Node) -> bool:
    for _ in range(1000):
        reader = only_reader(node.outputs[0])
        if reader is None or reader.op_type not in ("QuantizeLinear", "Relu", "Clip"):
            return False
        if is_quantize(reader):
            return True
        node = reader
    return False


def _quantize_operands(graph: ir.Graph, node: ir.Node, source: ir.Node) -> None:
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(bias)
    if weight is None or (bias is not None and (array is None or array.ndim != 1)):
        return
    maker = weight.producer()
    if maker is None and _float_constant(weight) is None:
        return
    if maker is not None and (not is_dequantize(maker) or array is None):
        return
    if maker is not None and not _weight_axis_fits(node, maker, 0 if array is None else array.size):
        return
    if maker is None:
        maker = _quantized_weight(graph, node, weight)
    if array is not None:
        _quantized_bias(graph, node, array, source, maker)


def _float_constant(value: ir.Value) -> NDArray[Any] | None:
    found = constant(value)
    return found if found is not None and found.dtype == np.float32 else None


def _weight_axis_fits(node: ir.Node, maker: ir.Node, channels: int) -> bool:
    grid = grid_of(maker)
    if grid is None or grid.scale.size == 1:
        return grid is not None
    if grid.scale.ndim != 1 or grid.scale.size != channels or attribute(maker, "block_size", 0):
        return False
    axis = attribute(maker, "axis", 1) % len(sizes(maker.inputs[0]) or (0,))
    expected = 0 if node.op_type != "Gemm" or attribute(node, "transB", 0) else 1
    return bool(axis == expected)


def _quantized_weight(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> ir.Node:
    array = constant(weight)
    if array is None:
        msg = "the weight is no constant"
        raise RuntimeError(msg)
    # symmetric: the range is widened to zero, 254 steps
    peak = max(np.abs(array).max(initial=0.0), 0.0)
    scale = np.float32(peak) / np.float32(127) if peak else np.float32(1.0)
    integers = np.clip(np.rint(array / scale), -128, 127).astype(np.int8)
    stored = add_constant(graph, f"{node.name}/weight", integers)
    grid = [
        add_constant(graph, f"{node.name}/weight_scale", np.array(scale, np.float32)),
        add_constant(graph, f"{node.name}/weight_zero_point", np.array(0, np.int8)),
    ]
    made = ir.node("DequantizeLinear", [stored, *grid], name=f"{node.name}/weight_dq")
    made.outputs[0].name = f"{node.name}/weight_dq"
    describe(made.outputs[0], weight)
    graph.insert_before(node, made)
    node.replace_input_with(1, made.outputs[0])
    return made


def _quantized_bias(
    graph: ir.Graph, node: ir.Node, bias: NDArray[Any], source: ir.Node, maker: ir.Node
) -> None:
    given, weight = grid_of(source), grid_of(maker)
    if given is None or weight is None:
        return
    scale = (given.scale.reshape(()) * weight.scale).astype(np.float32)
    integers = np.rint(bias / scale).astype(np.int32)
    stored = add_constant(graph, f"{node.name}/bias", integers)
    grid = add_constant(graph, f"{node.name}/bias_scale", scale)
    made = ir.node("DequantizeLinear", [stored, grid], {"axis": 0}, name=f"{node.name}/bias_dq")
    made.outputs[0].name = f"{node.name}/bias_dq"
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    made.outputs[0].shape = ir.Shape(bias.shape)
    graph.insert_before(node, made)
    node.replace_input_with(2, made.outputs[0])


def drops_activation(node: ir.Node, quantize: ir.Node) -> bool:
    """Whether the quantizer behind a Relu or Clip cuts off all that it would."""
    grid = grid_of(quantize)
    if grid is None or not grid.single or readers(node.outputs[0]) != [quantize]:
        return False
    if grid.dtype not in (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16):
        return False
    info = np.iinfo(grid.dtype.numpy())
    zero, scale = int(grid.zero.item()), np.float32(grid.scale.item())
    if node.op_type == "Relu":
        return zero == info.min
    low, high = clip_bounds(node)
    if low is None or high is None:
        return False
    bottom, top = np.rint(np.float32(low) / scale), np.rint(np.float32(high) / scale)
    return bool(_as_int(bottom) + zero <= info.min and _as_int(top) + zero >= info.max)


def _as_int(x: np.floating[Any]) -> int:
    return int(np.clip(x, -(2.0**31), 2.0**31 - 1))


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Constant bounds of a Clip; None where one is computed."""
    found: list[float | None] = []
    for i, (name, default) in enumerate((("min", np.finfo(np.float32).min),
                                         ("max", np.finfo(np.float32).max)), 1):  # fmt: skip
        value = node.inputs[i] if len(node.inputs) > i else None
        array = constant(value)
        if value is None or value.name == "":
            found.append(float(attribute(node, name, default)))
        else:
            found.append(None if array is None else float(array.reshape(-1)[0]))
    return found[0], found[1]
