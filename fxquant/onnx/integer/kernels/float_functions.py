"""Functions that onnxruntime's CPU kernels compute by polynomials, with the same steps.

The polynomials are Eigen's for the logistic function and tanh, and N. Juffa's for exp and erf
("Efficient faithfully rounded implementation of error function erff", Stack Overflow 35148198).
Where the CPU has fused multiply-add, as every x86 CPU since 2013, `a·b + c` rounds once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxquant.onnx.integer.kernels.arithmetic import F32, Array
from fxquant.onnx.integer.kernels.lanes import Lanes


def _polynomial(x: Array, coefficients: Sequence[float], lanes: Lanes) -> Array:
    """Horner's scheme, highest power first."""
    value = np.full(x.shape, F32(coefficients[0]), F32)
    for coefficient in coefficients[1:]:
        value = lanes.multiply_add(value, x, np.asarray(coefficient, F32))
    return value


def _rational(
    x: Array, limit: float, upper: Sequence[float], lower: Sequence[float], lanes: Lanes
) -> Array:
    """`x·p(x²) / q(x²)` for x within ±limit."""
    x = np.clip(x, F32(-limit), F32(limit))
    square = (x * x).astype(F32)
    above = (_polynomial(square, upper, lanes) * x).astype(F32)
    return (above / _polynomial(square, lower, lanes)).astype(F32)


def logistic(x: Array, lanes: Lanes) -> Array:
    """1 / (1 + exp(-x)), float32."""
    upper = (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05,
             8.51377133304701e-03, 2.48287947061529e-01)  # fmt: skip
    lower = (6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06,
             1.70198817374094e-03, 1.16817656904453e-01, 9.93151921023180e-01)  # fmt: skip
    shifted = (_rational(x, 18.0, upper, lower, lanes) + F32(0.5)).astype(F32)
    return np.clip(shifted, F32(0.0), F32(1.0))


def tanh(x: Array, lanes: Lanes) -> Array:
    """tanh, float32."""
    upper = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11,
             5.12229709037114e-08, 1.48572235717979e-05, 6.37261928875436e-04,
             4.89352455891786e-03)  # fmt: skip
    lower = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03,
             4.89352518554385e-03)  # fmt: skip
    return _rational(x, 9.0, upper, lower, lanes)


_LOG2_RECIPROCAL = np.asarray(1.44269504088896341, F32)
_LOG2_HIGH = np.asarray(-6.93145752e-1, F32)
_LOG2_LOW = np.asarray(-1.42860677e-6, F32)
_ROUNDING = np.asarray(12582912.0, F32)  # 1.5 · 2^23: adding it rounds to a whole number


def _reduced(x: Array, lanes: Lanes) -> tuple[Array, Array]:
    """(r, m) with exp(x) = exp(r) · 2^m."""
    add = lanes.multiply_add
    power = (add(x, _LOG2_RECIPROCAL, _ROUNDING) - _ROUNDING).astype(F32)
    return add(power, _LOG2_LOW, add(power, _LOG2_HIGH, x)), power


_EXP = (float.fromhex("0x1.694000p-10"), float.fromhex("0x1.125edcp-7"),
        float.fromhex("0x1.555b5ap-5"), float.fromhex("0x1.555450p-3"),
        float.fromhex("0x1.fffff6p-2"), 1.0, 1.0)  # fmt: skip


def exp(x: Array, lanes: Lanes) -> Array:
    """exp, float32."""
    rest, power = _reduced(np.clip(x, F32(-103.9720840454), F32(88.7762626647950)), lanes)
    return np.ldexp(_polynomial(rest, _EXP, lanes), power.astype(np.int32)).astype(F32)


def exp_below_zero(x: Array, lanes: Lanes) -> Array:
    """exp of numbers that are not positive, as softmax computes it."""
    rest, power = _reduced(np.maximum(x, F32(-88.3762626647949)), lanes)
    return np.ldexp(_polynomial(rest, _EXP, lanes), power.astype(np.int32)).astype(F32)


_ERF_SMALL = (-5.99104969e-4, 4.99339588e-3, -2.67667342e-2, 1.12818025e-1, -3.76124859e-1,
              1.28379151e-1)  # fmt: skip
_ERF_BIG = (1.72948930e-5, -3.83208680e-4, 3.88393435e-3, -2.42545605e-2, 1.06777847e-1,
            6.34846687e-1, 1.28717512e-1)  # fmt: skip
_ERF_EXP = (1.38319808e-3, 8.37550033e-3, 4.16689515e-2, 1.66664466e-1, 4.99999851e-1, 1.0, 1.0)


def erf(x: Array, lanes: Lanes) -> Array:
    """The error function, float32: one polynomial near zero, an exponential further out."""
    size = np.minimum(np.abs(x), F32(3.925))
    add, square = lanes.multiply_add, (size * size).astype(F32)
    small = add(_polynomial(square, _ERF_SMALL, lanes), size, size)
    big = -add(_polynomial(size, _ERF_BIG, lanes), size, size)
    big = np.maximum(big, F32(-88.3762626647949))
    rest, power = _reduced(big, lanes)
    tail = np.ldexp(_polynomial(rest, _ERF_EXP, lanes), power.astype(np.int32)).astype(F32)
    far = (F32(1.0) - tail).astype(F32)
    return np.copysign(np.where(size > F32(0.921875), far, small), x).astype(F32)


def softmax(x: Array, lanes: Lanes) -> Array:
    """Softmax of the rows of a matrix."""
    parts, total = _exponentials(x, lanes)
    return np.asarray(parts * (F32(1.0) / total).astype(F32), F32)


def log_softmax(x: Array, lanes: Lanes) -> Array:
    """Logarithm of softmax of the rows of a matrix.

    The logarithm of the sum is rounded right here; the C library's, which onnxruntime takes, is so
    in all but about one of a hundred cases.
    """
    total = _exponentials(x, lanes)[1]
    shifted = (x - x.max(axis=1, keepdims=True)).astype(F32)
    return np.asarray(shifted - np.log(total.astype(np.float64)).astype(F32), F32)


def _exponentials(x: Array, lanes: Lanes) -> tuple[Array, Array]:
    """Exponentials of rows, the largest of each one, and their sums."""
    parts = exp_below_zero((x - x.max(axis=1, keepdims=True)).astype(F32), lanes)
    return parts, lanes.sums(parts)
