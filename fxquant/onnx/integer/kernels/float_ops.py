"""Operators in float32: the same steps as onnxruntime's kernels where the order of steps counts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fxquant.onnx.integer.kernels import float_functions
from fxquant.onnx.integer.kernels.arithmetic import F32, Array, dequantize, quantize
from fxquant.onnx.integer.kernels.kernel_graph import dtype_of
from fxquant.onnx.integer.kernels.lanes import Lanes
from fxquant.onnx.integer.kernels.registry import KernelCall, UnsupportedError, kernel

Unary = Callable[[Array], Array]
Function = Callable[[Array, Lanes], Array]
Binary = Callable[[Array, Array], Array]


# --- quantizers ----------------------------------------------------------------------------------


@kernel("QuantizeLinear")
def _quantize(c: KernelCall) -> Array:
    x, zero = c.array(0), c.optional(2)
    dtype = _integer_type(c)
    scale = _spread(c, c.array(1), x)
    spread = np.zeros((), np.int32) if zero is None else _spread(c, zero, x)
    return quantize(x, scale, spread, dtype)


def _integer_type(c: KernelCall) -> np.dtype[np.generic]:
    zero = c.optional(2)
    found = dtype_of(c.node.outputs[0])
    if found is not None and int(found.bitwidth) < 8:
        msg = "integers below a byte have no kernel here"
        raise UnsupportedError(msg)
    if found is not None and found.is_floating_point():
        msg = f"{found.name} is no integer"
        raise UnsupportedError(msg)
    if zero is not None:
        return zero.dtype
    return np.dtype(np.uint8) if found is None else found.numpy()


@kernel("DequantizeLinear")
def _dequantize(c: KernelCall) -> Array:
    q, zero = c.array(0), c.optional(2)
    spread = np.zeros((), np.int32) if zero is None else _spread(c, zero, q)
    return dequantize(q, _spread(c, c.array(1), q), spread)


def _spread(c: KernelCall, value: Array, x: Array) -> Array:
    """Scale or zero point per tensor, axis or block, as it broadcasts against the tensor."""
    if value.size == 1:
        return value.reshape(())
    axis = c.whole("axis", 1) % x.ndim
    if value.ndim == 1:
        return value.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    block = c.whole("block_size", 0)
    return np.repeat(value, block, axis=axis).take(range(x.shape[axis]), axis=axis)


# --- one operand ---------------------------------------------------------------------------------


def _enter_float(name: str, function: Function) -> None:
    def run(c: KernelCall) -> Array:
        x = c.array(0)
        if x.dtype != F32:
            msg = f"{x.dtype} has no kernel here"
            raise UnsupportedError(msg)
        return np.asarray(function(x, c.lanes))

    kernel(name)(run)


def _enter_unary(name: str, function: Unary) -> None:
    kernel(name)(lambda c: np.asarray(function(c.array(0))))


def _enter_binary(name: str, function: Binary) -> None:
    kernel(name)(lambda c: np.asarray(function(c.array(0), c.array(1))))


def _enter_folded(name: str, function: Binary) -> None:
    def run(c: KernelCall) -> Array:
        total = c.array(0)
        for i in range(1, len(c.operands)):
            total = np.asarray(function(total, c.array(i)))
        return total

    kernel(name)(run)


_FLOAT: dict[str, Function] = {
    "Sigmoid": float_functions.logistic,
    "Tanh": float_functions.tanh,
    "Erf": float_functions.erf,
    "Exp": float_functions.exp,
    "Sqrt": lambda x, _: np.asarray(np.sqrt(x)),
    "Reciprocal": lambda x, _: np.asarray(F32(1.0) / x),
}
_UNARY: dict[str, Unary] = {
    "Relu": lambda x: np.asarray(np.maximum(x, x.dtype.type(0))),
    "Neg": np.negative,
    "Abs": np.abs,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Round": np.rint,
    "Sign": np.sign,
    "Not": np.logical_not,
    "IsNaN": np.isnan,
    "Identity": lambda x: x,
}
_BINARY: dict[str, Binary] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
}
_FOLDED: dict[str, Binary] = {"Sum": np.add, "Max": np.maximum, "Min": np.minimum}

for _name, _function in _FLOAT.items():
    _enter_float(_name, _function)
for _name, _unary in _UNARY.items():
    _enter_unary(_name, _unary)
for _name, _binary in _BINARY.items():
    _enter_binary(_name, _binary)
for _name, _binary in _FOLDED.items():
    _enter_folded(_name, _binary)


@kernel("Gelu")
def _gelu(c: KernelCall) -> Array:
    x = c.array(0)
    if c.text("approximate", "none") == "tanh":
        msg = "the approximation by tanh has no kernel here"
        raise UnsupportedError(msg)
    root = (x * F32(math.sqrt(0.5))).astype(F32)
    bent = (float_functions.erf(root, c.lanes) + F32(1.0)).astype(F32)
    return ((F32(0.5) * x).astype(F32) * bent).astype(F32)


@kernel("QuickGelu")
def _quick_gelu(c: KernelCall) -> Array:
    x, alpha = c.array(0), F32(c.number("alpha", 1.702))
    scaled = x if alpha == 1 else (x * alpha).astype(F32)
    return (x * float_functions.logistic(scaled, c.lanes)).astype(F32)


@kernel("LeakyRelu")
def _leaky_relu(c: KernelCall) -> Array:
    x = c.array(0)
    return np.where(x >= 0, x, (x * F32(c.number("alpha", 0.01))).astype(F32))


@kernel("HardSigmoid")
def _hard_sigmoid(c: KernelCall) -> Array:
    return _bent(c.array(0), c.number("alpha", 0.2), c.number("beta", 0.5))


def _bent(x: Array, alpha: float, beta: float) -> Array:
    line = ((x * F32(alpha)).astype(F32) + F32(beta)).astype(F32)
    return np.clip(line, F32(0.0), F32(1.0))


@kernel("HardSwish")
def _hard_swish(c: KernelCall) -> Array:
    x = c.array(0)
    return (x * _bent(x, 1 / 6, 0.5)).astype(F32)


@kernel("Clip")
def _clip(c: KernelCall) -> Array:
    x = c.array(0)
    low, high = c.optional(1), c.optional(2)
    if len(c.node.inputs) < 2:  # attributes, before opset 11
        bounds = np.finfo(F32)
        low = np.asarray(c.number("min", float(bounds.min)), F32)
        high = np.asarray(c.number("max", float(bounds.max)), F32)
    if low is not None:
        x = np.maximum(x, low.reshape(()))
    return x if high is None else np.minimum(x, high.reshape(()))


@kernel("Cast")
def _cast(c: KernelCall) -> Array:
    import onnx_ir as ir

    x, target = c.array(0), ir.DataType(c.whole("to", 1))
    narrow = target.is_floating_point() and int(target.bitwidth) == 8  # which may saturate
    if int(target.bitwidth) < 8 or narrow or target is ir.DataType.STRING:
        msg = f"a cast to {target.name} has no kernel here"
        raise UnsupportedError(msg)
    dtype = target.numpy()
    if x.dtype.kind == "f" and dtype.kind in "iu":
        return np.trunc(x).astype(np.int64).astype(dtype)
    return x.astype(dtype)


# --- several operands ----------------------------------------------------------------------------


@kernel("Div")
def _divide(c: KernelCall) -> Array:
    a, b = c.array(0), c.array(1)
    if a.dtype.kind in "iu":  # towards zero, as C divides
        quotient = np.abs(a) // np.abs(b)
        return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype))
    return np.asarray(a / b)


@kernel("Pow")
def _power(c: KernelCall) -> Array:
    x, exponent = c.array(0), c.array(1)
    if exponent.size != 1 or exponent.item() not in (2.0, 3.0) or x.dtype != F32:
        msg = "only squares and cubes have a kernel here"
        raise UnsupportedError(msg)
    square = (x * x).astype(F32)
    return square if exponent.item() == 2.0 else (square * x).astype(F32)


@kernel("Mod")
def _modulo(c: KernelCall) -> Array:
    a, b = c.array(0), c.array(1)
    return np.asarray(np.fmod(a, b) if c.whole("fmod", 0) else np.mod(a, b))


@kernel("Where")
def _where(c: KernelCall) -> Array:
    return np.where(c.array(0), c.array(1), c.array(2))


@kernel("PRelu")
def _prelu(c: KernelCall) -> Array:
    x = c.array(0)
    return np.where(x >= 0, x, (x * c.array(1)).astype(F32))
