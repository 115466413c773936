"""Which groups become kernels: the executor's decision against the graph onnxruntime makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.session import optimized
from tests.helpers.integers import assert_equal, compare, kernels
from tests.helpers.qdq import Graph
from tests.onnx.integer.test_kernels import floats, normal

SHAPE = (2, 8, 12, 10)
Write = Callable[[Graph, ir.Value], ir.Value]

# float operators that onnxruntime joins or takes apart; the numbers stay the same
_JOINED = {"FusedConv": ("Conv", "Relu"), "FusedGemm": ("Gemm", "Relu")}


def assert_same_kernels(model: ir.Model, folder: Path) -> None:
    """The same operator types, as often, in both graphs."""
    path = folder / "model.onnx"
    ir.save(model, path)
    theirs: Counter[str] = Counter()
    for node in optimized(path).graph:
        theirs.update(_JOINED.get(node.op_type, (node.op_type,)))
    ours = Counter(node.op_type for node in IntegerModel(model).graph)
    ours["Relu"] += ours.pop("Clip", 0)
    theirs["Relu"] += theirs.pop("Clip", 0)
    assert +ours == +theirs


def check(model: ir.Model, folder: Path, **shapes: tuple[int, ...]) -> dict[str, str]:
    """The same kernels and the same integers; gives the kernels by node."""
    assert_same_kernels(model, folder)
    assert_equal(model, normal(0, **(shapes or {"x": SHAPE})))
    return kernels(model)


def conv(g: Graph, x: ir.Value, **options: Any) -> ir.Value:
    """A convolution of an input with scale 0.02."""
    weight, scales = g.weight("w", (6, 8, 3, 3))
    bias = g.bias("b", np.float32(0.02) * scales * np.float32(options.pop("factor", 1.0)))
    return g.op("Conv", "conv", x, weight, bias, **options)


def quantized_conv(after: Write | None, scale: float, zero: int, **options: Any) -> ir.Model:
    """`Q -> DQ -> Conv -> after -> Q -> DQ`."""
    g = Graph(x=SHAPE)
    y = conv(g, g.quantized("qx", g["x"], 0.02, 100), **options)
    return g.model(g.quantized("qy", after(g, y) if after else y, scale, zero))


def relu(g: Graph, y: ir.Value) -> ir.Value:
    return g.op("Relu", "act", y)


def clip(g: Graph, y: ir.Value) -> ir.Value:
    low, high = g.constant("low", np.float32(0.0)), g.constant("high", np.float32(6.0))
    return g.op("Clip", "act", y, low, high)


# --- activations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "scale", "zero", "kernel"),
    [
        (relu, 0.05, 0, "QLinearConv"),
        (relu, 0.05, 5, "Conv"),
        (clip, 6 / 255, 0, "QLinearConv"),
        (clip, 7 / 255, 0, "Conv"),
        (clip, 5 / 255, 3, "Conv"),
        (None, 0.05, 100, "QLinearConv"),
    ],
)
def test_an_activation_vanishes_where_the_quantizer_cuts_off_the_same(
    after: Write | None, scale: float, zero: int, kernel: str, tmp_path: Path
) -> None:
    found = check(quantized_conv(after, scale, zero), tmp_path)
    assert found["conv"] == kernel
    if after is not None:
        assert found["act"] == (kernel if kernel != "Conv" else found["act"])


# --- weights and biases --------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "kernel"), [(1.005, "QLinearConv"), (1.1, "Conv")])
def test_the_scale_of_a_conv_bias_is_checked_to_one_percent(
    factor: float, kernel: str, tmp_path: Path
) -> None:
    assert check(quantized_conv(None, 0.05, 100, factor=factor), tmp_path)["conv"] == kernel


def test_the_scale_of_a_gemm_bias_is_used_unchecked(tmp_path: Path) -> None:
    g = Graph(x=(7, 33))
    weight, scales = g.weight("w", (12, 33))
    bias = g.bias("b", scales * np.float32(0.02) * 8)
    x = g.quantized("qx", g["x"], 0.02, 100)
    y = g.op("Gemm", "gemm", x, weight, bias, transB=1)
    assert check(g.model(y), tmp_path, x=(7, 33))["gemm"] == "QGemm"


def test_float_weights_in_front_of_a_quantizer_are_quantized_in_silence(tmp_path: Path) -> None:
    g, rng = Graph(x=SHAPE), np.random.default_rng(0)
    weight = g.constant("w", rng.standard_normal((6, 8, 3, 3)).astype(np.float32))
    bias = g.constant("b", rng.standard_normal(6).astype(np.float32))
    y = g.op("Conv", "conv", g.quantized("qx", g["x"], 0.02, 100), weight, bias)
    model = g.model(g.quantized("qy", y, 0.2, 100))
    assert check(model, tmp_path)["conv"] == "QLinearConv"


@pytest.mark.parametrize("output", [False, True])
def test_a_float_bias_needs_a_quantized_output(output: bool, tmp_path: Path) -> None:
    g = Graph(x=(3, 7, 33))
    weight, _ = g.weight("w", (33, 12), axis=1)
    bias = g.constant("b", np.random.default_rng(0).standard_normal(12).astype(np.float32))
    x = g.quantized("qx", g["x"], 0.02, 100)
    y = g.op("Add", "add", bias, g.op("MatMul", "mm", x, weight))
    found = check(g.model(g.quantized("qy", y, 0.05, 120) if output else y), tmp_path, x=(3, 7, 33))
    assert found["mm"] == ("QGemm" if output else "Gemm")


@pytest.mark.parametrize("bias", [False, True])
def test_a_weight_behind_a_transpose(bias: bool, tmp_path: Path) -> None:
    g = Graph(x=(3, 7, 33))
    weight, scales = g.weight("w", (12, 33))
    y = g.op("MatMul", "mm", g.quantized("qx", g["x"], 0.02, 100),
             g.op("Transpose", "turn", weight, perm=[1, 0]))  # fmt: skip
    y = g.op("Add", "add", y, g.bias("b", scales * np.float32(0.02))) if bias else y
    found = check(g.model(g.quantized("qy", y, 0.05, 120)), tmp_path, x=(3, 7, 33))
    assert found["mm"] == ("QGemm" if bias else "QLinearMatMul")


def test_a_scaled_gemm_stays_float(tmp_path: Path) -> None:
    g = Graph(x=(7, 33))
    weight, scales = g.weight("w", (12, 33))
    x = g.quantized("qx", g["x"], 0.02, 100)
    y = g.op("Gemm", "gemm", x, weight, g.bias("b", scales * np.float32(0.02)), transB=1, alpha=0.7)
    model = g.model(g.quantized("qy", y, 0.05, 120))
    assert check(model, tmp_path, x=(7, 33))["gemm"] == "Gemm"


def test_a_product_over_a_dynamic_batch_keeps_its_add(tmp_path: Path) -> None:
    g = Graph(x=("batch", 7, 33))
    weight, scales = g.weight("w", (33, 12), axis=1)
    x = g.quantized("qx", g["x"], 0.02, 100)
    y = g.op("Add", "add", g.op("MatMul", "mm", x, weight), g.bias("b", np.float32(0.02) * scales))
    model = g.model(g.quantized("qy", y, 0.05, 120))
    assert check(model, tmp_path, x=(3, 7, 33)) == {"mm": "MatMulIntegerToFloat", "add": "Add"}


# --- operators that move values ------------------------------------------------------------------


def _integers(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


_MOVES: dict[str, Write] = {
    "Reshape": lambda g, x: g.op("Reshape", "op", x, g.constant("s", _integers(2, -1))),
    "Transpose": lambda g, x: g.op("Transpose", "op", x, perm=[0, 2, 3, 1]),
    "Unsqueeze": lambda g, x: g.op("Unsqueeze", "op", x, g.constant("s", _integers(1))),
    "Flatten": lambda g, x: g.op("Flatten", "op", x),
    "Slice": lambda g, x: g.op(
        "Slice", "op", x, *(g.constant(f"s{i}", v) for i, v in enumerate(
            (_integers(1, 2), _integers(7, 9), _integers(1, 2), _integers(2, 1))))),
    "Backwards": lambda g, x: g.op(
        "Slice", "op", x, *(g.constant(f"s{i}", v) for i, v in enumerate(
            (_integers(-1), _integers(-100), _integers(1), _integers(-1))))),
    "Expand": lambda g, x: g.op("Expand", "op", x, g.constant("s", _integers(3, 1, 1, 1, 1))),
    "Tile": lambda g, x: g.op("Tile", "op", x, g.constant("s", _integers(1, 2, 1, 1))),
    "Gather": lambda g, x: g.op("Gather", "op", x, g.constant("s", _integers(1, 0, 3)), axis=1),
    "MaxPool": lambda g, x: g.op("MaxPool", "op", x, kernel_shape=[2, 2], strides=[2, 2]),
    "Overhang": lambda g, x: g.op(
        "MaxPool", "op", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, ceil_mode=1),
    "ReduceMax": lambda g, x: g.op("ReduceMax", "op", x, g.constant("s", _integers(2, 3))),
    "Nearest": lambda g, x: g.op(
        "Resize", "op", x, None, g.constant("s", floats(1, 1, 2, 2)), mode="nearest"),
    "Linear": lambda g, x: g.op(
        "Resize", "op", x, None, g.constant("s", floats(1, 1, 2, 2)), mode="linear"),
    "DepthToSpace": lambda g, x: g.op("DepthToSpace", "op", x, blocksize=2),
    "Pad": lambda g, x: g.op("Pad", "op", x, g.constant("s", _integers(0, 0, 1, 1, 0, 0, 1, 2))),
    "Mean": lambda g, x: g.op("ReduceMean", "op", x, g.constant("s", _integers(2, 3))),
    "Chain": lambda g, x: g.op("Transpose", "turn", _MOVES["MaxPool"](g, x), perm=[0, 2, 3, 1]),
}  # fmt: skip


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("behind_conv", [False, True])
@pytest.mark.parametrize("name", _MOVES)
def test_moves(name: str, behind_conv: bool, other: bool, tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    x = g.quantized("qx", g["x"], 0.02, 100)
    if behind_conv:
        weight, scales = g.weight("w", (8, 8, 1, 1))
        x = g.op("Conv", "conv", x, weight, g.bias("b", np.float32(0.02) * scales))
    y = _MOVES[name](g, x)
    check(g.model(g.quantized("qy", y, 0.03, 90) if other else g.quantized("qy", y, 0.02, 100)),
          tmp_path)  # fmt: skip


def test_split_with_one_grid_moves_integers(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    x = g.quantized("qx", g["x"], 0.02, 100)
    node = ir.node("Split", [x], {"axis": 1, "num_outputs": 2}, num_outputs=2, name="split")
    node.outputs[0].name, node.outputs[1].name = "first", "second"
    g.nodes.append(node)
    parts = [g.quantized(f"q{i}", v, 0.02, 100) for i, v in enumerate(node.outputs)]
    assert check(g.model(*parts), tmp_path)["split"] == "Split"


def test_padding_moves_into_the_convolution(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    x = g.quantized("qx", g["x"], 0.02, 100)
    y = conv(g, g.op("Pad", "pad", x, g.constant("pads", _integers(0, 0, 1, 0, 0, 0, 1, 2))),
             pads=[0, 0, 1, 0])  # fmt: skip
    assert check(g.model(g.quantized("qy", y, 0.05, 90)), tmp_path)["conv"] == "QLinearConv"


# --- who reads -----------------------------------------------------------------------------------


def test_one_quantizer_with_two_readers_fuses(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    x = g.quantized("qx", g["x"], 0.02, 100)
    first = g.quantized("qa", relu(g, conv(g, x, pads=[1] * 4)), 0.03, 0)
    weight, scales = g.weight("v", (6, 6, 1, 1))
    y = g.op("Conv", "conv2", first, weight, g.bias("c", np.float32(0.03) * scales))
    second = g.quantized("qb", y, 0.05, 90)
    model = g.model(g.quantized("qc", g.op("Add", "add", first, second), 0.06, 80))
    found = check(model, tmp_path)
    assert [found[n] for n in ("conv", "conv2", "add")] == ["QLinearConv"] * 2 + ["QLinearAdd"]


def test_a_float_reader_besides_the_quantizer_keeps_the_convolution_float(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    y = conv(g, g.quantized("qx", g["x"], 0.02, 100))
    model = g.model(g.quantized("qy", y, 0.05, 100), g.op("Tanh", "tanh", y))
    assert check(model, tmp_path)["conv"] == "Conv"


def test_two_different_quantizers_keep_the_convolution_float(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    y = conv(g, g.quantized("qx", g["x"], 0.02, 100))
    model = g.model(g.quantized("qa", y, 0.05, 100), g.quantized("qb", y, 0.04, 100))
    assert check(model, tmp_path)["conv"] == "Conv"


def test_two_equal_quantizers_are_one() -> None:
    g = Graph(x=SHAPE)
    y = conv(g, g.quantized("qx", g["x"], 0.02, 100))
    model = g.model(g.quantized("qa", y, 0.05, 100), g.quantized("qb", y, 0.05, 100))
    executor = IntegerModel(model)
    assert kernels(model)["conv"] == "QLinearConv"
    assert executor.visible_names == ("qx_q",)
    feeds = normal(x=SHAPE)
    assert compare(model, feeds, shown=False).outputs == 0.0
    found = executor.tensors(feeds)
    assert np.array_equal(found["qa_q"], found["qb_q"])


def test_pairs_of_pairs_are_merged_to_the_grid_that_both_cover() -> None:
    g = Graph(x=(500,))
    inner = g.quantized("qb", g.quantized("qa", g["x"], 0.02, 100), 0.03, 90)
    model = g.model(inner)
    assert compare(model, normal(x=(500,)), shown=False).outputs == 0.0
    assert IntegerModel(model).quantized_names == ("qa_q",)


# --- int8 activations ----------------------------------------------------------------------------


def test_int8_pairs_with_one_reader_become_uint8() -> None:
    g = Graph(x=SHAPE)
    y = conv(g, g.quantized("qx", g["x"], 0.02, 5, np.int8))
    model = g.model(g.quantized("qy", y, 0.05, -7, np.int8))
    executor = IntegerModel(model)
    assert kernels(model)["conv"] == "QLinearConv"
    assert executor.visible_names == ()
    feeds = normal(x=SHAPE)
    assert compare(model, feeds, shown=False).outputs == 0.0
    assert executor.tensors(feeds)["qy_q"].dtype == np.int8


def test_int8_with_two_readers_stays_and_runs_float(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    x = g.quantized("qx", g["x"], 0.02, 5, np.int8)
    y = g.quantized("qy", conv(g, x), 0.05, 90)
    z = g.quantized("qz", g.op("Tanh", "tanh", x), 0.01, 90)
    assert check(g.model(y, z), tmp_path)["conv"] == "Conv"


@pytest.mark.parametrize("opset", [13, 17, 19, 23])
def test_the_opset_changes_nothing(opset: int, tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    y = relu(g, conv(g, g.quantized("qx", g["x"], 0.02, 100)))
    model = g.model(g.quantized("qy", y, 0.05, 0), opset=opset)
    assert check(model, tmp_path)["conv"] == "QLinearConv"
