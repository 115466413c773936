"""Each fused kernel against onnxruntime, byte by byte: on generic scales and on round ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from fxquant.onnx.integer.kernels.arithmetic import fma
from tests.helpers.integers import assert_equal, kernels
from tests.helpers.qdq import Graph

Shape = tuple[int, ...]


def floats(*values: float) -> NDArray[np.float32]:
    """A float32 vector."""
    return np.array(values, np.float32)


def normal(seed: int = 0, **shapes: Shape) -> dict[str, NDArray[np.float32]]:
    """Normal inputs of these shapes."""
    rng = np.random.default_rng(seed)
    return {k: (rng.standard_normal(s) * 2).astype(np.float32) for k, s in shapes.items()}


class Scales:
    """Random grids."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def scale(self) -> float:
        return float(self.rng.uniform(0.011, 0.05))

    def zero(self) -> int:
        return int(self.rng.integers(0, 256))


# --- arithmetic ----------------------------------------------------------------------------------


def test_a_fused_multiply_add_rounds_once() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(20_000).astype(np.float32) for _ in range(3))
    exact = floats(*(float(np.longdouble(x) * y + z) for x, y, z in zip(a, b, c, strict=True)))
    assert np.mean(fma(a, b, c) == exact) == 1.0


def test_a_fused_multiply_add_is_right_where_two_roundings_are_not() -> None:
    # exactly 1 + 2^-24 + 2^-60: float64 makes a tie of it, which float32 would round down
    a, b = floats((1 + 2.0**-12) * 2.0**-24), floats(1 - 2.0**-12 + 2.0**-24)
    one = floats(1.0)
    assert (a.astype(np.float64) * b + one).astype(np.float32)[0] == np.float32(1.0)
    assert fma(a, b, one)[0] == np.float32(1 + 2.0**-23)
    assert fma(-a, b, -one)[0] == np.float32(-1 - 2.0**-23)


# --- sums and products of two tensors ------------------------------------------------------------

_PAIRS: list[tuple[Shape, Shape]] = [
    ((8, 3, 17, 19), (8, 3, 17, 19)),
    ((8, 3, 17, 19), (8, 3, 1, 1)),
    ((8, 3, 1, 1), (8, 3, 17, 19)),
    ((8, 30, 50), (50,)),
    ((8, 33, 1, 1), (1, 33, 1, 1)),
    ((40, 1, 50), (40, 30, 1)),
]


@pytest.mark.parametrize("kind", ["Add", "Mul"])
@pytest.mark.parametrize(("a", "b"), _PAIRS)
def test_sums_and_products(kind: str, a: Shape, b: Shape) -> None:
    s, g = Scales(len(a) + a[0]), Graph(a=a, b=b)
    x = g.quantized("qa", g["a"], s.scale(), s.zero())
    y = g.quantized("qb", g["b"], s.scale(), s.zero())
    model = g.model(g.quantized("qy", g.op(kind, "op", x, y), 1.5 * s.scale(), s.zero()))
    assert kernels(model)["op"] == f"QLinear{kind}"
    assert_equal(model, normal(a=a, b=b))


@pytest.mark.parametrize("kind", ["Add", "Mul"])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("second", [(16, 50, 20), (16, 50, 1)])
def test_round_scales_are_full_of_ties(kind: str, ratio: float, second: Shape) -> None:
    s, first = Scales(int(4 * ratio)), (16, 50, 20)
    g = Graph(a=first, b=second)
    x = g.quantized("qa", g["a"], 0.02, s.zero())
    y = g.quantized("qb", g["b"], 0.02 * ratio, s.zero())
    model = g.model(g.quantized("qy", g.op(kind, "op", y, x), 0.02, s.zero()))
    assert_equal(model, normal(a=first, b=second))


# --- pools, tables, concatenation ----------------------------------------------------------------


def _one(
    kind: str, shape: Shape, grids: tuple[float, int, float, int], **attributes: Any
) -> ir.Model:
    g = Graph(x=shape)
    x = g.quantized("qx", g["x"], grids[0], grids[1])
    return g.model(g.quantized("qy", g.op(kind, "op", x, **attributes), grids[2], grids[3]))


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(
    ("kernel", "pad", "include", "ceil"),
    [(2, 0, 0, 0), (3, 1, 0, 0), (3, 1, 1, 0), (5, 2, 1, 0), (3, 1, 0, 1)],
)
def test_average_pools(kernel: int, pad: int, include: int, ceil: int, same: bool) -> None:
    s = Scales(kernel + pad)
    x = s.scale(), s.zero()
    grids = (*x, *x) if same else (*x, s.scale(), s.zero())
    shape = (4, 8, 21, 22)
    model = _one(
        "AveragePool", shape, grids, kernel_shape=[kernel] * 2, strides=[2, 2], pads=[pad] * 4,
        count_include_pad=include, ceil_mode=ceil,
    )  # fmt: skip
    assert kernels(model)["op"] == "QLinearAveragePool"
    assert_equal(model, normal(x=shape))


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("size", [(7, 7), (8, 8), (1, 1), (3, 50)])
def test_global_average_pools(size: tuple[int, int], same: bool) -> None:
    s, shape = Scales(size[1]), (32, 16, *size)
    x = s.scale(), s.zero()
    model = _one("GlobalAveragePool", shape, (*x, *x) if same else (*x, s.scale() / 3, s.zero()))
    assert_equal(model, normal(x=shape))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("kind", "attributes"),
    [("LeakyRelu", {"alpha": 0.1}), ("Sigmoid", {}), ("Softmax", {"axis": -1}),
     ("Softmax", {"axis": 1})],
)  # fmt: skip
def test_tables(kind: str, attributes: dict[str, Any], seed: int) -> None:
    s, shape = Scales(seed), (16, 10, 33)
    after = (s.scale(), s.zero()) if kind == "LeakyRelu" else (1 / 256, 0)
    model = _one(kind, shape, (s.scale(), s.zero(), *after), **attributes)
    assert kernels(model)["op"] == f"QLinear{kind}"
    assert_equal(model, normal(seed, x=shape))


@pytest.mark.parametrize("kind", ["Concat", "Where"])
def test_operands_are_moved_to_the_grid_of_the_result(kind: str) -> None:
    s, shape = Scales(5), (16, 10, 33)
    g = Graph(x=shape, y=shape)
    x = g.quantized("qx", g["x"], s.scale(), s.zero())
    y = g.quantized("qy", g["y"], s.scale(), s.zero())
    choice = g.constant("choice", np.random.default_rng(0).random((10, 33)) > 0.5)
    made = (
        g.op("Concat", "op", x, y, axis=1) if kind == "Concat" else g.op(kind, "op", choice, x, y)
    )
    model = g.model(g.quantized("qz", made, s.scale(), s.zero()))
    assert kernels(model)["op"] == f"QLinear{kind}"
    assert_equal(model, normal(x=shape, y=shape))


# --- convolutions --------------------------------------------------------------------------------

_CONVS: dict[str, tuple[Shape, Shape, dict[str, Any]]] = {
    "1d": ((2, 8, 50), (16, 8, 5), {"pads": [2, 2], "strides": [2]}),
    "2d": ((2, 8, 11, 13), (16, 8, 3, 3), {"pads": [1] * 4}),
    "3d": ((2, 4, 6, 7, 8), (6, 4, 3, 3, 3), {"pads": [1] * 6}),
    "grouped": ((2, 8, 11, 13), (16, 4, 3, 3), {"group": 2}),
    "depthwise": ((2, 16, 11, 13), (16, 1, 3, 3), {"group": 16, "strides": [2, 2]}),
    "multiplied": ((2, 8, 11, 13), (16, 1, 5, 5), {"group": 8, "dilations": [2, 2]}),
    "upper": ((2, 8, 14, 13), (16, 8, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "lower": ((2, 8, 14, 13), (16, 8, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "uneven": ((2, 8, 14, 13), (16, 8, 3, 3), {"pads": [0, 1, 2, 0]}),
}


@pytest.mark.parametrize("name", _CONVS)
def test_convolutions(name: str) -> None:
    shape, weight, attributes = _CONVS[name]
    g = Graph(x=shape)
    x = g.quantized("qx", g["x"], 0.02, 128)
    w, scales = g.weight("w", weight)
    y = g.op("Conv", "op", x, w, g.bias("b", np.float32(0.02) * scales), **attributes)
    model = g.model(g.quantized("qy", y, 0.05, 117))
    assert kernels(model)["op"] == "QLinearConv"
    assert_equal(model, normal(x=shape))


def test_padding_counts_as_the_zero_point() -> None:
    g = Graph(x=(2, 4, 6, 6))
    y = g.conv("op", g.quantized("qx", g["x"], 0.02, 3), 0.02, (4, 4, 5, 5))
    assert_equal(g.model(g.quantized("qy", y, 0.05, 100)), normal(x=(2, 4, 6, 6)))


def test_unsigned_weights_with_a_zero_point_a_channel() -> None:
    g = Graph(x=(2, 4, 9, 9))
    x, rng = g.quantized("qx", g["x"], 0.02, 100), np.random.default_rng(1)
    w = g.op(
        "DequantizeLinear", "w.dq", g.constant("w", rng.integers(0, 255, (6, 4, 3, 3), np.uint8)),
        g.constant("w_scale", rng.uniform(0.5, 1, 6).astype(np.float32) / 400),
        g.constant("w_zero", rng.integers(90, 160, 6).astype(np.uint8)), axis=0,
    )  # fmt: skip
    model = g.model(g.quantized("qy", g.op("Conv", "op", x, w), 0.05, 117))
    assert kernels(model)["op"] == "QLinearConv"
    assert_equal(model, normal(x=(2, 4, 9, 9)))


# --- matrix products -----------------------------------------------------------------------------


def _linear(shape: Shape, write: Callable[[Graph, ir.Value, ir.Value, ir.Value], ir.Value],
            weight: Shape, axis: int, *, output: bool) -> ir.Model:  # fmt: skip
    g = Graph(x=shape)
    x = g.quantized("qx", g["x"], 0.02, 100)
    w, scales = g.weight("w", weight, axis=axis)
    y = write(g, x, w, g.bias("b", np.float32(0.02) * scales))
    return g.model(g.quantized("qy", y, 0.05, 120) if output else y)


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int, output: bool) -> None:
    shape = (12, 33) if transposed else (33, 12)
    model = _linear(
        (7, 33), lambda g, x, w, b: g.op("Gemm", "op", x, w, b, transB=transposed),
        shape, 1 - transposed, output=output,
    )  # fmt: skip
    assert kernels(model)["op"] == "QGemm"
    assert_equal(model, normal(x=(7, 33)))


@pytest.mark.parametrize("output", [False, True])
def test_a_product_without_bias(output: bool) -> None:
    model = _linear((3, 7, 33), lambda g, x, w, b: g.op("MatMul", "op", x, w), (33, 12), 1,
                    output=output)  # fmt: skip
    assert kernels(model)["op"] == ("QLinearMatMul" if output else "MatMulIntegerToFloat")
    assert_equal(model, normal(x=(3, 7, 33)))


@pytest.mark.parametrize("output", [False, True])
def test_a_product_of_three_axes_with_bias(output: bool) -> None:
    model = _linear(
        (3, 7, 33), lambda g, x, w, b: g.op("Add", "add", g.op("MatMul", "op", x, w), b),
        (33, 12), 1, output=output,
    )  # fmt: skip
    assert kernels(model) == {"op": "QGemm", "add": "QGemm"}
    assert_equal(model, normal(x=(3, 7, 33)))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("output", [False, True])
def test_products_of_two_activations(signed: bool, output: bool) -> None:
    g = Graph(a=(2, 3, 7, 9), b=(2, 3, 9, 5))
    a = g.quantized("qa", g["a"], 0.02, 100)
    b = g.quantized("qb", g["b"], 0.03, 0 if signed else 77, np.int8 if signed else np.uint8)
    y = g.op("MatMul", "op", a, b)
    model = g.model(g.quantized("qy", y, 0.09, 100) if output else y)
    assert_equal(model, normal(a=(2, 3, 7, 9), b=(2, 3, 9, 5)))
