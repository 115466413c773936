"""Which operators onnxruntime fuses, and the stated reason for those that it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fxquant.onnx.ort.coverage import OperatorRow, coverage, macs
from tests.helpers.qdq import Graph


def rows_of(g: Graph, folder: Path, *outputs: ir.Value) -> dict[str, OperatorRow]:
    return {row.name: row for row in coverage(g.save(folder, *outputs))}


def image() -> tuple[Graph, ir.Value]:
    g = Graph(x=("batch", 8, 8, 8))
    return g, g.quantized("in", g["x"], 0.02, 128)


def test_a_residual_block_runs_on_integers(tmp_path: Path) -> None:
    g, x = image()
    relu = g.op("Relu", "relu", g.conv("conv1", x, 0.02, (8, 8, 3, 3)))
    y = g.quantized("relu", relu, 0.05, 0)
    y = g.quantized("conv2", g.conv("conv2", y, 0.05, (8, 8, 3, 3)), 0.1, 120)
    y = g.quantized("add", g.op("Add", "add", x, y), 0.1, 100)
    y = g.quantized(
        "pool", g.op("MaxPool", "pool", y, kernel_shape=[2, 2], strides=[2, 2]), 0.1, 100
    )
    y = g.quantized("gap", g.op("GlobalAveragePool", "gap", y), 0.1, 100)
    y = g.quantized("flat", g.op("Flatten", "flat", y, axis=1), 0.1, 100)
    weight, scales = g.weight("fc.weight", (5, 8))
    y = g.op("Gemm", "fc", y, weight, g.bias("fc.bias", np.float32(0.1) * scales), transB=1)

    rows = rows_of(g, tmp_path, y)

    kernels = {name: row.kernel for name, row in rows.items() if row.integer}
    assert kernels == {
        "conv1": "QLinearConv", "relu": "QLinearConv", "conv2": "QLinearConv", "add": "QLinearAdd",
        "pool": "MaxPool", "gap": "QLinearGlobalAveragePool", "flat": "Flatten", "fc": "QGemm",
    }  # fmt: skip
    assert all(row.reason == "" for row in rows.values())


Build = Callable[[Graph, ir.Value], ir.Value]


def no_output_grid(g: Graph, x: ir.Value) -> ir.Value:
    return g.op("Sqrt", "root", g.conv("conv", x, 0.02, (8, 8, 3, 3)))


def float_output(g: Graph, x: ir.Value) -> ir.Value:
    return g.conv("conv", x, 0.02, (8, 8, 3, 3))


def relu_that_is_not_redundant(g: Graph, x: ir.Value) -> ir.Value:
    return g.quantized("relu", g.op("Relu", "relu", g.conv("conv", x, 0.02, (8, 8, 1, 1))), 0.1, 7)


def relu_of_few_bits(g: Graph, x: ir.Value) -> ir.Value:
    relu = g.op("Relu", "relu", g.conv("conv", x, 0.02, (8, 8, 1, 1)))
    low, high = g.constant("low", np.float32(0)), g.constant("high", np.float32(6.3))
    return g.quantized("relu", g.op("Clip", "clip", relu, low, high), 0.1, 0)


def float_reader(g: Graph, x: ir.Value) -> ir.Value:
    y = g.conv("conv", x, 0.02, (8, 8, 1, 1))
    return g.op("Sub", "sub", g.quantized("conv", y, 0.1, 128), g.op("Sqrt", "root", y))


def two_grids(g: Graph, x: ir.Value) -> ir.Value:
    y = g.conv("conv", x, 0.02, (8, 8, 1, 1))
    return g.op("Sub", "sub", g.quantized("a", y, 0.1, 128), g.quantized("b", y, 0.2, 128))


def float_input(g: Graph, x: ir.Value) -> ir.Value:
    return g.quantized("conv", g.conv("conv", g["x"], 0.02, (8, 8, 1, 1)), 0.1, 128)


def wide_weight(g: Graph, x: ir.Value) -> ir.Value:
    weight, _ = g.weight("conv.weight", (8, 8, 1, 1), dtype=np.int16)
    return g.quantized("conv", g.op("Conv", "conv", x, weight), 0.1, 128)


def wide_input(g: Graph, x: ir.Value) -> ir.Value:
    x = g.quantized("wide", g.op("Neg", "neg", x), 0.01, 1000, np.uint16)
    weight, _ = g.weight("conv.weight", (8, 8, 1, 1))
    return g.quantized("conv", g.op("Conv", "conv", x, weight), 0.1, 128)


def wrong_bias_scale(g: Graph, x: ir.Value) -> ir.Value:
    return g.quantized("conv", g.conv("conv", x, 0.03, (8, 8, 1, 1)), 0.1, 128)


def float_constant(g: Graph, x: ir.Value) -> ir.Value:
    return g.quantized(
        "conv", g.op("Add", "conv", x, g.constant("c", np.ones(8, np.float32))), 0.1, 128
    )


def no_kernel(g: Graph, x: ir.Value) -> ir.Value:
    return g.quantized("conv", g.op("Gelu", "conv", x), 0.02, 10)


@pytest.mark.parametrize(
    ("build", "operator", "reason"),
    [
        (no_output_grid, "conv", "its output is not quantized"),
        (float_output, "conv", "its float output is an output of the model"),
        (relu_that_is_not_redundant, "conv", "the zero point 7 is not the smallest integer 0"),
        (relu_that_is_not_redundant, "relu", "the zero point 7 is not the smallest integer 0"),
        (relu_of_few_bits, "conv", "a Clip cuts off integers of the grid 0 to 255"),
        (relu_of_few_bits, "relu", "a Clip cuts off integers of the grid 0 to 255"),
        (float_reader, "conv", "its output is quantized and also read as float by Sqrt"),
        (two_grids, "conv", "its output is quantized in 2 different ways"),
        (float_input, "conv", "its operand is a floating-point input of the model"),
        (wide_weight, "conv", "its weight is int16; integer kernels take 8 bits"),
        (wide_input, "conv", "its input is uint16; integer kernels take 8 bits"),
        (wrong_bias_scale, "conv", "the scale of its bias is not input scale × weight scale"),
        (float_constant, "conv", "its constant operand is floating point"),
        (no_kernel, "conv", "onnxruntime's CPU provider has no integer Gelu"),
    ],
)
def test_reasons(build: Build, operator: str, reason: str, tmp_path: Path) -> None:
    g, x = image()
    row = rows_of(g, tmp_path, build(g, x))[operator]
    assert not row.integer
    assert row.reason.startswith(reason), row.reason


def test_a_linear_on_three_dimensions_is_found_behind_the_reshapes_of_the_fusion(
    tmp_path: Path,
) -> None:
    g = Graph(x=(2, 6, 8))
    x = g.quantized("in", g["x"], 0.02, 128)
    weight, scales = g.weight("fc.weight", (8, 16), axis=1)
    y = g.op(
        "Add",
        "fc.bias_add",
        g.op("MatMul", "fc", x, weight),
        g.bias("fc.bias", np.float32(0.02) * scales),
    )
    y = g.quantized("fc", y, 0.1, 128)
    rows = rows_of(g, tmp_path, g.op("Softmax", "softmax", y))
    assert (rows["fc"].kernel, rows["fc"].integer) == ("QGemm", True)
    assert (rows["fc.bias_add"].kernel, rows["fc.bias_add"].integer) == ("QGemm", True)
    assert rows["softmax"].integer is False


def shaped(
    kind: str, x: tuple[int | str, ...], w: tuple[int, ...], y: tuple[int | str, ...]
) -> ir.Node:
    g = Graph(x=x)
    out = g.op(kind, "n", g["x"], g.constant("w", np.zeros(w, np.float32)))
    out.shape = ir.Shape(y)
    return g.nodes[0]


@pytest.mark.parametrize(
    ("node", "count"),
    [
        (shaped("Conv", ("batch", 4, 8, 8), (6, 2, 3, 3), ("batch", 6, 8, 8)), 6 * 64 * 2 * 9),
        (shaped("ConvTranspose", ("batch", 4, 8, 8), (4, 6, 2, 2), ("batch", 6, 16, 16)), 256 * 24),
        (shaped("MatMul", ("batch", 5, 8), (8, 3), ("batch", 5, 3)), 5 * 3 * 8),
        (shaped("MatMul", ("4*batch", 5, 8), (8, 3), ("4*batch", 5, 3)), 4 * 5 * 3 * 8),
        (shaped("Relu", ("batch", 5), (5,), ("batch", 5)), 0),
    ],
)
def test_multiply_accumulates(node: ir.Node, count: int) -> None:
    assert macs(node) == count


def test_multiply_accumulates_are_counted_through_nodes_without_shapes() -> None:
    g = Graph(x=("batch", 5, 8))
    rows = g.op("Reshape", "rows", g["x"], g.constant("form", np.array([-1, 8])))
    g.op("Gemm", "fc", rows, g.constant("w", np.zeros((3, 8), np.float32)), transB=1)
    assert rows.shape is None
    assert macs(g.nodes[-1], batch=2) == 2 * 5 * 8 * 3


def test_multiply_accumulates_of_recurrent_layers_put_together_from_parts() -> None:
    g = Graph(x=(7, "batch", 4))
    value = g["x"]
    for layer, features in (("first", 4), ("second", 6)):
        parts = [
            g.op("Concat", f"{layer}.{kind}", *halves, axis=0)
            for kind, size in (("w", features), ("r", 3))
            for halves in [
                [g.constant(f"{layer}.{kind}{i}", np.zeros((1, 12, size))) for i in "ab"]
            ]
        ]
        value = g.op("LSTM", layer, value, *parts, hidden_size=3, direction="bidirectional")
        nodes = [n for n in g.nodes if n.op_type == "LSTM"]
    assert [macs(n, batch=5) for n in nodes] == [35 * 24 * (4 + 3), 35 * 24 * (6 + 3)]
