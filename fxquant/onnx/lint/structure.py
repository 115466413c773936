"""The rules of the lint: each looks at the graph once and says what it finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.onnx.qdq import PRODUCTS

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"
# integer kernels onto which onnxruntime folds an activation function
_ABSORBING = frozenset({"Conv", "Gemm", "Add", "MatMul", "GlobalAveragePool", "Sigmoid"})
UNLOADED, SCALES, SHAPES = "FXQ514", "FXQ515", "FXQ516"
_SMALLEST_NORMAL = np.finfo(np.float32).tiny


# how far onnxruntime lets the scale of a Conv's bias be off; that of a Gemm's is not read
_CONV_BIAS = 0.01


@dataclass(frozen=True)
class Finding:
    """One thing the lint has to say.

    Attributes:
        code: stable identifier.
        severity: "error" (wrong results or no loading), "warning" (slow or fragile), "note".
        node: name of the node; empty for the model as a whole.
        what: what is wrong.
        fix: what to do about it.
    """

    code: str
    severity: str
    node: str
    what: str
    fix: str


def check_graph(model: ir.Model) -> list[Finding]:
    """All findings, rule by rule."""
    nodes = list(model.graph.all_nodes())
    return [f for rule in _RULES for f in rule(nodes)]


def array(value: ir.Value | None) -> NDArray[Any] | None:
    """Content of an initializer."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """An input, None where it is omitted."""
    return node.inputs[index] if index < len(node.inputs) else None


def consumers_of(node: ir.Node) -> list[ir.Node]:
    """The node behind each use of its outputs."""
    return [use.node for output in node.outputs for use in output.uses()]


def producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node that makes a value, if it is of this kind."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == kind else None


def _pairs(nodes: list[ir.Node]) -> Iterator[ir.Node]:
    return (n for n in nodes if n.op_type in (_Q, _DQ))


def name_of(node: ir.Node) -> str:
    """What findings call it."""
    return node.name or f"{node.op_type} without a name"


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


# --- errors ------------------------------------------------------------------------------------


def _unique_names(nodes: list[ir.Node]) -> Iterator[Finding]:
    for name, count in Counter(n.name for n in nodes if n.name).items():
        if count > 1:
            what = f"{count} nodes have this name: onnxruntime does not load them"
            yield Finding(UNLOADED, "error", str(name), what, "give every node its own name")


def _scales(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in _pairs(nodes):
        scale = array(operand(node, 1))
        if scale is None:
            what = "the scale is no constant: the runtime cannot use integer kernels"
            yield Finding(SCALES, "warning", name_of(node), what, "store the scale as initializer")
            continue
        values = scale.astype(np.float64)
        if not np.isfinite(values).all() or (values <= 0).any():
            what = "a scale is not positive and finite: the runtime computes nonsense silently"
            yield Finding(SCALES, "error", name_of(node), what, "calibrate the tensor again")
        elif (values < _SMALLEST_NORMAL).any():
            what = "a scale is denormal: its reciprocal overflows"
            yield Finding(SCALES, "error", name_of(node), what, "calibrate the tensor again")


def _channels(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in _pairs(nodes):
        scale, x = array(operand(node, 1)), operand(node, 0)
        shape, zero = _known_shape(x), array(operand(node, 2))
        if scale is not None and (not scale.size or _unlike(scale, zero)):
            given = () if zero is None else zero.shape
            what = f"the scale has the shape {scale.shape}, the zero point {given}"
            yield Finding(SHAPES, "error", name_of(node), what, "give each scale its zero point")
            continue
        if scale is None or scale.size == 1 or scale.ndim != 1 or shape is None:
            continue
        axis = _int(node, "axis", 1)
        if not -len(shape) <= axis < len(shape):
            what = f"axis {axis} does not exist in a tensor of shape {shape}"
            yield Finding(SHAPES, "error", name_of(node), what, "set the channel axis")
        elif isinstance(shape[axis], int) and shape[axis] != scale.size:
            what = f"{scale.size} scales for the {shape[axis]} channels of axis {axis}"
            yield Finding(SHAPES, "error", name_of(node), what, "one scale for every channel")


def _unlike(scale: NDArray[Any], zero: NDArray[Any] | None) -> bool:
    if zero is None or scale.size == zero.size == 1:
        return False
    return scale.shape != zero.shape


def _known_shape(value: ir.Value | None) -> list[Any] | None:
    if value is None:
        return None
    if value.const_value is not None:
        return list(value.const_value.shape)
    return list(value.shape) if value.shape is not None else None


def _weight_axis(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        if node.op_type not in PRODUCTS:
            continue
        pair = producer(operand(node, 1), _DQ)
        scale = array(operand(pair, 1)) if pair else None
        if pair is None or scale is None or scale.ndim != 1 or scale.size == 1:
            continue
        if array(operand(pair, 0)) is None or "block_size" in pair.attributes:
            continue
        rank = len(_known_shape(operand(pair, 0)) or [])
        axis, wanted = _int(pair, "axis", 1) % max(rank, 1), _output_axis(node, rank)
        if axis != wanted:
            what = f"the weight's scales lie along axis {axis}, its output channels along {wanted}"
            fix = "the integer kernel would take them for output channels: set the axis"
            yield Finding("FXQ517", "error", name_of(node), what, fix)


def _output_axis(node: ir.Node, rank: int) -> int:
    if node.op_type == "Gemm":
        return 0 if _int(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1)


def _biases(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        bias, weight, x = _bias_pairs(node)
        if bias is None or weight is None or x is None:
            continue
        scales = [array(operand(p, 1)) for p in (bias, x, weight)]
        have, s_in, s_w = scales
        if have is None or s_in is None or s_w is None or not s_in.size:
            continue
        zero = array(operand(bias, 2))
        if zero is not None and zero.any():
            what = "the zero point of the int32 bias is not zero: integer kernels ignore it"
            yield Finding("FXQ518", "error", name_of(bias), what, "use zero point 0")
        wanted = np.float32(s_in.reshape(-1)[0]) * s_w.astype(np.float32).reshape(-1)
        if have.size not in (1, wanted.size) or (have.reshape(-1) != wanted).any():
            same = have.size in (1, wanted.size)
            far = not (same and np.allclose(have.reshape(-1), wanted, rtol=_CONV_BIAS, atol=0.0))
            floats = far and node.op_type == "Conv"
            ends = "onnxruntime runs it in floating point" if floats else "the kernel ignores it"
            what = f"the bias scale is not input scale × weight scale of {name_of(node)}: {ends}"
            fix = "store the bias on the grid of the accumulator, a bias for every layer"
            yield Finding("FXQ518", "error", name_of(bias), what, fix)


def _bias_pairs(node: ir.Node) -> tuple[ir.Node | None, ir.Node | None, ir.Node | None]:
    """DequantizeLinear of the int32 bias, of the weight and of the input of a layer."""
    if node.op_type in ("Conv", "Gemm"):
        operands = [operand(node, i) for i in (2, 1, 0)]
    elif node.op_type == "Add":
        product = next((p for v in node.inputs if (p := producer(v, "MatMul"))), None)
        if product is None:
            return None, None, None
        other = next((v for v in node.inputs if v is not product.outputs[0]), None)
        operands = [other, operand(product, 1), operand(product, 0)]
    else:
        return None, None, None
    bias, weight, x = (producer(v, _DQ) for v in operands)
    stored = operand(bias, 0) if bias else None
    if stored is None or stored.dtype is not ir.DataType.INT32:
        return None, None, None
    if weight is not None and "block_size" in weight.attributes:
        return None, None, None  # no integer kernel takes blocks: there is no accumulator's grid
    return bias, weight, x


def _constants(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        stored = operand(node, 0)
        if node.op_type == _Q and stored is not None and stored.const_value is not None:
            what = "a constant is quantized when the model runs: float weights in the file"
            fix = "store its integers behind a DequantizeLinear"
            yield Finding("FXQ519", "warning", name_of(node), what, fix)
        for value in node.inputs:
            content = (
                array(value) if value is not None and value.dtype is ir.DataType.FLOAT else None
            )
            if content is not None and np.isnan(content).any():
                what = f"the constant {value.name} holds NaN"  # type: ignore[union-attr]
                yield Finding("FXQ520", "error", name_of(node), what, "look at the weights")


# --- warnings ----------------------------------------------------------------------------------


def _zero_points(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in _pairs(nodes):
        if operand(node, 2) is None and not _is_looked_up(node):
            what = "the zero point is not given: operators that move values do not fuse"
            yield Finding("FXQ521", "warning", name_of(node), what, "give an explicit zero point")


def _is_looked_up(node: ir.Node) -> bool:
    """Whether it dequantizes rows of a stored table: there is no quantizer to fuse with."""
    source = producer(operand(node, 0), "Gather")
    return source is not None and array(operand(source, 0)) is not None


def _several_quantizers(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        if node.op_type in (_Q, _DQ):
            continue
        for output in node.outputs:
            consumers = [use.node for use in output.uses()]
            quantizers = [r for r in consumers if r.op_type == _Q]
            if len(quantizers) > 1 or (
                quantizers and len(consumers) > 1 and node.op_type in PRODUCTS
            ):
                what = (
                    f"{len(quantizers)} of the {len(consumers)} consumers of its output quantize it"
                )
                fix = "branch behind the QuantizeLinear: this way it runs in floating point"
                yield Finding("FXQ522", "warning", name_of(node), what, fix)


def _double_pairs(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        before = producer(operand(node, 0), _DQ) if node.op_type == _Q else None
        if before is None or producer(operand(before, 0), _Q) is None:
            continue
        if not same_grid(node, before):
            what = (
                "it quantizes what was just dequantized from another grid: the runtime merges both"
            )
            fix = "keep one grid for the tensor"
            yield Finding("FXQ523", "warning", name_of(node), what, fix)


def same_grid(a: ir.Node, b: ir.Node) -> bool:
    """Whether two Q or DQ nodes have equal constant scales and zero points."""
    for i in (1, 2):
        first, second = array(operand(a, i)), array(operand(b, i))
        if first is None or second is None or not np.array_equal(first, second):
            return False
    return True


def _activations(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type != "Relu" or before is None or before.op_type not in _ABSORBING:
            continue
        for consumer in consumers_of(node):
            zero = operand(consumer, 2) if consumer.op_type == _Q else None
            content = array(zero)
            if (
                content is not None
                and zero is not None
                and int(content.reshape(-1)[0]) != _least(zero)
            ):
                what = f"the zero point {int(content.reshape(-1)[0])} keeps it from being folded"
                fix = "quantize from zero upwards: the whole group runs in floating point"
                yield Finding("FXQ524", "warning", name_of(node), what, fix)


def _least(value: ir.Value) -> int:
    name = value.dtype.name if value.dtype else ""
    bits = int(value.dtype.bitwidth) if value.dtype else 8
    return 0 if name.startswith("U") else -(2 ** (bits - 1))


def _signed(nodes: list[ir.Node]) -> Iterator[Finding]:
    signed = [n for n in nodes if n.op_type == _Q and _is_int8(n)]
    plain = [n for n in signed if any(r.op_type == _DQ for r in consumers_of(n))]
    for node in plain:
        what = "signed activations: onnxruntime has no fast kernel for them on x86"
        fix = "use unsigned activations for this target"
        yield Finding("FXQ525", "warning", name_of(node), what, fix)
    for node in signed:
        if "output_dtype" in node.attributes:
            what = "output_dtype with a signed type: onnxruntime does not load it"
            yield Finding("FXQ525", "error", name_of(node), what, "give a zero point instead")


def _is_int8(node: ir.Node) -> bool:
    zero = operand(node, 2)
    return zero is not None and zero.dtype is ir.DataType.INT8


def _partly_quantized(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        if node.op_type not in ("Conv", "Gemm") or not producer(operand(node, 0), _DQ):
            continue
        if _is_float_constant(operand(node, 1)) and any(
            r.op_type == _Q for r in consumers_of(node)
        ):
            what = (
                "float weights between integers: onnxruntime quantizes them by itself, per tensor"
            )
            fix = "quantize the weights, or leave the output in floating point"
            yield Finding("FXQ526", "warning", name_of(node), what, fix)


def _is_float_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.dtype is ir.DataType.FLOAT


def _weight_only(nodes: list[ir.Node]) -> Iterator[Finding]:
    for node in nodes:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        weight = producer(operand(node, 1), _DQ)
        if weight is None or array(operand(weight, 0)) is None:
            continue
        if not producer(operand(node, 0), _DQ) and not any(
            r.op_type == _Q for r in consumers_of(node)
        ):
            what = "integer weights, float activations: onnxruntime quantizes these while it runs"
            fix = "set session.qdq_matmulnbits_accuracy_level to 0 for exact results"
            yield Finding("FXQ527", "note", name_of(node), what, fix)


_RULES: tuple[Callable[[list[ir.Node]], Iterator[Finding]], ...] = (
    _unique_names, _scales, _channels, _weight_axis, _biases, _constants,
    _zero_points, _several_quantizers, _double_pairs, _activations, _signed,
    _partly_quantized, _weight_only,
)  # fmt: skip
