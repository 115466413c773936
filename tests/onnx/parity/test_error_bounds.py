"""Tolerances: derived from the number and size of what is added, and never wider than stated."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from fxquant.onnx.parity.error_bounds import (
    ISLAND_SLACK,
    UNIT,
    WIDEST,
    Bound,
    Tolerance,
    bounds_of,
    tolerances,
)
from tests.helpers.qdq import Graph


def tolerance_of(g: Graph, output: ir.Value, name: str) -> Tolerance:
    return tolerances(g.model(output), [name], {"x": 3.0})[name]


def test_a_sum_of_products_is_bounded_by_its_largest_partial_sum() -> None:
    g = Graph(x=("batch", 8, 8, 8))
    x = g.quantized("in", g["x"], 0.02, 128)
    y = g.quantized("conv", g.conv("conv", x, 0.02, (8, 8, 3, 3)), 0.5, 128)
    weight = g.constants["conv.weight"].const_value
    scale = g.constants["conv.weight_scale"].const_value
    bias = g.constants["conv.bias"].const_value
    assert weight is not None
    assert scale is not None
    assert bias is not None
    norms = np.abs(weight.numpy().astype(np.float64)).sum((1, 2, 3)) * scale.numpy()
    biases = np.abs(bias.numpy()) * scale.numpy() * np.float32(0.02)
    largest = 128 * 0.02 * norms.max() + biases.max()
    expected = 2 * UNIT * largest / 0.5 + 2 * UNIT * 255
    found = tolerance_of(g, y, "conv_q")
    assert found.tie == pytest.approx(expected, rel=1e-5)
    assert found.drift == found.tie, "a sum of products is no float island"


def test_values_that_only_move_have_no_noise_but_that_of_the_division() -> None:
    g = Graph(x=("batch", 8, 8, 8))
    x = g.quantized("in", g["x"], 0.02, 128)
    y = g.quantized("pool", g.op("MaxPool", "pool", x, kernel_shape=[2, 2]), 0.02, 128)
    assert tolerance_of(g, y, "pool_q").tie == pytest.approx(2 * UNIT * 255)


@pytest.mark.parametrize("constant", [True, False])
def test_a_float_bias_may_be_rounded_to_the_grid_of_the_sums(constant: bool) -> None:
    """onnxruntime joins it with the product in front; what is computed stays what it is."""
    g = Graph(x=("batch", 8), b=(8,))
    x = g.quantized("in", g["x"], 0.02, 128)
    weight = g.op(
        "DequantizeLinear", "weight", g.constant("w", np.ones((8, 8), np.int8)),
        g.constant("w_scale", np.float32(0.05)), g.constant("w_zero", np.int8(0)),
    )  # fmt: skip
    bias = g.constant("bias", np.zeros(8, np.float32)) if constant else g["b"]
    total = g.op("Add", "add", g.op("MatMul", "product", x, weight), bias)
    found = tolerances(g.model(g.quantized("add", total, 0.5, 128)), ["add_q"], {"x": 3.0, "b": 0})
    sums = 2 * (2 * UNIT * 128 * 0.02 * 8 * 0.05) / 0.5 + 2 * UNIT * 255
    rounded = 0.5 * 0.02 * 0.05 / 0.5 if constant else 0.0
    assert found["add_q"].tie == pytest.approx(sums + rounded, rel=1e-5)


@pytest.mark.parametrize(("mode", "positions"), [("nearest", 0), ("linear", 6 * 2 * 40 * 2.5)])
def test_a_resize_is_as_exact_as_the_positions_it_computes(mode: str, positions: float) -> None:
    g = Graph(x=("batch", 8, 40, 40))
    x = g.quantized("in", g["x"], 0.02, 128)
    sizes = g.constant("sizes", np.array([1, 8, 30, 30], np.int64))
    y = g.op("Resize", "resize", x, None, None, sizes, mode=mode)
    y.producer().inputs[0].shape = ir.Shape(["batch", 8, 40, 40])  # type: ignore[union-attr]
    found = tolerance_of(g, g.quantized("resize", y, 0.02, 128), "resize_q")
    noise = UNIT * 128 * (positions + 4) if positions else 0.0
    assert found.tie == pytest.approx(2 * UNIT * 255 + noise)


def test_a_float_island_may_drift_by_a_stated_part_of_a_step() -> None:
    g = Graph(x=("batch", 8))
    x = g.quantized("in", g["x"], 0.02, 128)
    y = g.quantized("gelu", g.op("Gelu", "gelu", x), 0.02, 10)
    found = tolerance_of(g, y, "gelu_q")
    assert found.tie < 2e-3
    assert found.drift == ISLAND_SLACK


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_no_bound_excuses_more_than_a_sixteenth_of_a_step_of_eight_bits(dtype: type) -> None:
    g = Graph(x=("batch", 8))
    x = g.quantized("in", g["x"], 1.0, 128)
    y = g.op("Mul", "mul", g.op("Mul", "square", x, x), g.constant("c", np.float32(1e3)))
    y = g.quantized("mul", y, 1e-3, 0, dtype)
    assert tolerance_of(g, y, "mul_q").tie == (WIDEST if dtype is np.uint8 else 0.5)


def test_masks_are_no_magnitudes() -> None:
    g = Graph(x=("batch", 8))
    x = g.quantized("in", g["x"], 0.02, 128)
    mask = g.constant("mask", np.array([0, -np.inf, -1e9, -3.4e38] * 2, np.float32))
    y = g.op("Softmax", "softmax", g.op("Add", "add", x, mask))
    assert tolerance_of(g, g.quantized("softmax", y, 1 / 255, 0), "softmax_q").tie < 5e-3


def bounds_by_node(g: Graph, last: ir.Value) -> dict[str, Bound]:
    names = [f"{node.name}.out" for node in g.nodes]
    found = bounds_of(g.model(last), names, {"x": 3.0})
    return {name.removesuffix(".out"): bound for name, bound in found.items()}


def test_sums_and_products_carry_the_noise_of_both_operands() -> None:
    g = Graph(x=("batch", 8))
    four, half = g.constant("four", np.float32(4)), g.constant("half", np.float32(0.5))
    a = g.op("Add", "a", g["x"], four)
    b = g.op("Mul", "b", a, half)
    g.op("Mul", "c", half, a)
    g.op("Sub", "d", a, b)
    found = bounds_by_node(g, g.op("Mul", "e", a, b))
    assert found["a"] == Bound(7.0, 2 * UNIT * 7)
    assert found["b"] == Bound(3.5, 2 * UNIT * 7 * 0.5 + 2 * UNIT * 3.5)
    assert found["c"] == found["b"]
    assert found["d"] == Bound(10.5, 2 * UNIT * (7 + 3.5 + 3.5 + 10.5))
    assert found["e"].error == pytest.approx(2 * UNIT * (7 * 3.5 + 7 * 7 + 24.5))


def test_moves_averages_and_functions_carry_noise() -> None:
    g = Graph(x=("batch", 8))
    a = g.op("Add", "a", g["x"], g.constant("four", np.float32(4)))
    g.op("Relu", "relu", a)
    g.op("Concat", "cat", g["x"], a, axis=1)
    g.op("ReduceMean", "mean", a)
    g.op("Sigmoid", "sigmoid", a)
    g.op("Gelu", "gelu", a)
    found, noise = bounds_by_node(g, g.op("Exp", "exp", a)), 2 * UNIT * 7
    assert found["relu"] == found["cat"] == Bound(7.0, noise)
    assert found["mean"] == Bound(7.0, noise + 4 * UNIT * 7)
    assert found["sigmoid"] == Bound(1.0, noise / 4 + 8 * UNIT, island=True)
    assert found["gelu"].error == pytest.approx(1.13 * noise + 8 * UNIT * 7)
    assert found["gelu"].island
    assert found["exp"].island


def test_products_of_two_computed_operands_count_their_terms() -> None:
    g = Graph(x=("batch", 8, 8))
    found = bounds_by_node(g, g.op("MatMul", "m", g["x"], g["x"]))["m"]
    assert found == Bound(72.0, 2 * UNIT * 72)
