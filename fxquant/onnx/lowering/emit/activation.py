"""Activation functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fxquant.nn import DeQuantStub, QuantStub
from fxquant.onnx.lowering.builder import data_type
from fxquant.onnx.lowering.context import Call, Emitted, UnsupportedError
from fxquant.onnx.lowering.emitters import emits, emits_class

if TYPE_CHECKING:
    import onnx_ir as ir


@emits("relu")
def _relu(c: Call) -> ir.Value:
    return c.op("Relu", c.tensor())


@emits("sigmoid")
def _sigmoid(c: Call) -> ir.Value:
    return c.op("Sigmoid", c.tensor())


@emits("tanh")
def _tanh(c: Call) -> ir.Value:
    return c.op("Tanh", c.tensor())


@emits("softsign")
def _softsign(c: Call) -> ir.Value:
    return c.op("Softsign", c.tensor())


@emits("relu6")
def _relu6(c: Call) -> ir.Value:
    return c.op("Clip", c.tensor(), c.number(0.0), c.number(6.0))


@emits("hardtanh")
def _hardtanh(c: Call) -> ir.Value:
    low, high = c.number(c.static("min_val")), c.number(c.static("max_val"))
    return c.op("Clip", c.tensor(), low, high)


@emits("leaky_relu")
def _leaky_relu(c: Call) -> ir.Value:
    return c.op("LeakyRelu", c.tensor(), alpha=float(c.static("negative_slope")))


@emits("rrelu")
def _rrelu(c: Call) -> ir.Value:
    slope = (float(c.static("lower")) + float(c.static("upper"))) / 2
    return c.op("LeakyRelu", c.tensor(), alpha=slope)


@emits("elu")
def _elu(c: Call) -> ir.Value:
    return c.op("Elu", c.tensor(), alpha=float(c.static("alpha")))


@emits("selu")
def _selu(c: Call) -> ir.Value:
    return c.op("Selu", c.tensor(), alpha=1.6732632423543772, gamma=1.0507009873554805)


@emits("celu")
def _celu(c: Call) -> ir.Value:
    return c.op("Celu", c.tensor(), alpha=float(c.static("alpha")))


@emits("gelu")
def _gelu(c: Call) -> ir.Value:
    x, approximate = c.tensor(), c.static("approximate")
    if c.opset >= 20:
        return c.op("Gelu", x, approximate=approximate)
    if approximate == "tanh":
        cube = c.op("Mul", c.op("Mul", x, x), c.op("Mul", x, c.number(0.044715)))
        inner = c.op("Mul", c.op("Add", x, cube), c.number(math.sqrt(2 / math.pi)))
        bent = c.op("Tanh", inner)
    else:
        bent = c.op("Erf", c.op("Div", x, c.number(math.sqrt(2))))
    return c.op("Mul", c.op("Mul", x, c.op("Add", bent, c.number(1.0))), c.number(0.5))


@emits("silu")
def _silu(c: Call) -> ir.Value:
    x = c.tensor()
    if c.builder.contrib:
        # one node: onnxruntime gives two consumers of a DequantizeLinear one each and then no
        # longer sees that they read the same
        return c.op("QuickGelu", x, domain="com.microsoft", alpha=1.0)
    return c.op("Mul", x, c.op("Sigmoid", x))


@emits("mish")
def _mish(c: Call) -> ir.Value:
    x = c.tensor()
    if c.opset >= 18:
        return c.op("Mish", x)
    return c.op("Mul", x, c.op("Tanh", c.op("Softplus", x)))


@emits("hardsigmoid")
def _hardsigmoid(c: Call) -> ir.Value:
    return c.op("HardSigmoid", c.tensor(), alpha=1 / 6, beta=0.5)


@emits("hardswish")
def _hardswish(c: Call) -> ir.Value:
    x = c.tensor()
    if c.opset >= 14:
        return c.op("HardSwish", x)
    return c.op("Mul", x, c.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))


@emits("logsigmoid")
def _logsigmoid(c: Call) -> ir.Value:
    return c.op("Neg", c.op("Softplus", c.op("Neg", c.tensor())))


@emits("softplus")
def _softplus(c: Call) -> ir.Value:
    x, beta, threshold = c.tensor(), c.static("beta"), c.static("threshold")
    scaled = x if beta == 1 else c.op("Mul", x, c.number(beta))
    soft = c.op("Softplus", scaled)
    if beta != 1:
        soft = c.op("Div", soft, c.number(beta))
    if threshold >= 15:  # beyond it both forms are equal in float32
        return soft
    return c.op("Where", c.op("Greater", scaled, c.number(threshold)), x, soft)


@emits("tanhshrink")
def _tanhshrink(c: Call) -> ir.Value:
    return c.op("Sub", c.tensor(), c.op("Tanh", c.tensor()))


@emits("softshrink")
def _softshrink(c: Call) -> ir.Value:
    bound = float(c.static("lambd"))
    return c.op("Shrink", c.tensor(), lambd=bound, bias=bound)


@emits("hardshrink")
def _hardshrink(c: Call) -> ir.Value:
    return c.op("Shrink", c.tensor(), lambd=float(c.static("lambd")), bias=0.0)


@emits("threshold")
def _threshold(c: Call) -> ir.Value:
    x = c.tensor()
    above = c.op("Greater", x, c.number(c.static("threshold")))
    return c.op("Where", above, x, c.number(c.static("value")))


@emits("glu")
def _glu(c: Call) -> ir.Value:
    axis = c.axis()
    size = c.spec().shape[axis]
    if not isinstance(size, int):
        msg = "the halved axis is dynamic"
        raise UnsupportedError(msg)
    first, second = c.split(c.tensor(), axis, [size // 2, size // 2])
    return c.op("Mul", first, c.op("Sigmoid", second))


@emits("prelu")
def _prelu(c: Call) -> ir.Value:
    slope, rank = c.parameter("weight"), c.spec().rank
    count = c.spec("weight").shape
    if rank > 2 and count != (1,):
        # ONNX lays the slope against the last axes
        slope = c.op("Reshape", slope, [-1, *[1] * (rank - 2)])
    return c.op("PRelu", c.tensor(), slope)


def _cast_input(c: Call) -> ir.Value:
    dtype = c.static("dtype")
    return c.cast(c.tensor(), c.spec().dtype, dtype)


def _dim(c: Call) -> int:
    dim = c.static("dim")
    rank = c.spec().rank
    if dim is None:  # what torch takes when it is not said
        dim = 0 if rank in (0, 1, 3) else 1
    return int(dim) % max(rank, 1)


@emits("softmax")
def _softmax(c: Call) -> ir.Value:
    return c.op("Softmax", _cast_input(c), axis=_dim(c))


@emits("softmin")
def _softmin(c: Call) -> ir.Value:
    return c.op("Softmax", c.op("Neg", _cast_input(c)), axis=_dim(c))


@emits("log_softmax")
def _log_softmax(c: Call) -> ir.Value:
    return c.op("LogSoftmax", _cast_input(c), axis=_dim(c))


@emits("causal_mask")
def _causal_mask(c: Call) -> ir.Value:
    x, shape = c.tensor(), c.spec().shape
    queries, keys = shape[-2:]
    if not isinstance(queries, int) or not isinstance(keys, int):
        msg = "the number of queries or keys is dynamic"
        raise UnsupportedError(msg)
    # adding -inf is what filling does, and the runtime fuses an Add
    mask = torch.zeros(queries, keys, dtype=c.spec().dtype)
    mask.masked_fill_(torch.ones(queries, keys, dtype=torch.bool).tril().logical_not(), -math.inf)
    return c.op("Add", x, c.builder.constant(mask))


@emits(
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    "identity", "contiguous", "clone", "detach",
)  # fmt: skip
def _unchanged(c: Call) -> Emitted:
    if c.arguments.get("training") is True and c.module is not None and c.arguments.get("p"):
        # nn.Dropout has no such argument: this one drops in evaluation mode too
        msg = "it drops values in evaluation mode too"
        raise UnsupportedError(msg)
    return c.held("input")


@emits("to", "type_as", "float", "double", "half", "bfloat16", "long", "int", "bool")
def _cast(c: Call) -> Emitted:
    if c.spec().dtype == c.out.dtype:
        return c.held("input")
    return c.op("Cast", c.tensor(), to=data_type(c.out.dtype))


@emits_class(QuantStub, DeQuantStub)
def _stub(c: Call) -> Emitted:
    passed: Emitted = c.resolve([*c.node.args, *c.node.kwargs.values()][0])
    return passed
