"""Float32 functions and operators against onnxruntime's, bit by bit where they have one form."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.integer.kernels.float_functions import softmax
from fxquant.onnx.integer.kernels.lane_probe import lanes_here
from fxquant.onnx.integer.kernels.lanes import AVX2, AVX512, SSE, Lanes
from fxquant.onnx.session import Level, open_session, packed
from tests.helpers.qdq import Graph

SHAPE = (64, 129)


def single(kind: str, shape: tuple[int | str, ...] = SHAPE, **attributes: Any) -> ir.Model:
    """A model of one operator on a float input."""
    g = Graph(x=shape)
    return g.model(g.op(kind, "op", g["x"], **attributes))


def both(model: ir.Model, x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], Any]:
    """Output of the executor on its own, and of onnxruntime."""
    with packed(model.clone()) as source:
        theirs = open_session(source, Level.ALL).run({"x": x})["op.out"]
    return IntegerModel(model, islands="own")(x), theirs


def wide(seed: int = 0) -> np.ndarray[Any, Any]:
    """Numbers of many sizes, some of them far out."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(SHAPE) * np.exp(rng.uniform(-6, 3, SHAPE))
    return x.astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("Sigmoid", {}),
        ("Tanh", {}),
        ("Erf", {}),
        ("Exp", {}),
        ("Gelu", {}),
        ("Relu", {}),
        ("LeakyRelu", {"alpha": 0.1}),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        ("HardSwish", {}),
        ("Sqrt", {}),
        ("Reciprocal", {}),
        ("Round", {}),
    ],
)
def test_functions_are_equal_bit_for_bit(kind: str, attributes: dict[str, Any]) -> None:
    x = np.abs(wide()) if kind == "Sqrt" else wide()
    ours, theirs = both(single(kind, **attributes), x)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("kind", "attributes", "shape"),
    [
        ("GlobalAveragePool", {}, (2, 3, 9, 8)),
        ("GlobalAveragePool", {}, (2, 3, 7, 7)),
        ("GlobalAveragePool", {}, (3, 2, 3)),
        *[("GlobalAveragePool", {}, (2, channels, 7, 7)) for channels in (4, 8, 16, 24, 48)],
        ("GlobalAveragePool", {}, (2, 16, 49)),
        ("GlobalAveragePool", {}, (2, 16, 3, 4, 5)),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4}, (2, 3, 9, 8)),
        ("AveragePool", {"kernel_shape": [7, 5], "strides": [2, 2]}, (2, 3, 13, 17)),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4}, (2, 16, 9, 8)),
        ("GlobalMaxPool", {}, (2, 3, 9, 8)),
    ],
)
def test_pools_are_equal_bit_for_bit(
    kind: str, attributes: dict[str, Any], shape: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    ours, theirs = both(single(kind, shape, **attributes), x)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("channels", [8, 12, 16, 32])
@pytest.mark.parametrize("before", ["Relu", "MaxPool", "AveragePool", "both"])
def test_a_global_pool_adds_in_the_layout_of_what_comes_before(channels: int, before: str) -> None:
    g = Graph(x=("batch", channels, 9, 9))
    y = g["x"]
    for i, kind in enumerate(("MaxPool", "Relu") if before == "both" else (before,)):
        attributes = {} if kind == "Relu" else {"kernel_shape": [2, 2]}
        y = g.op(kind, f"before{i}", y, **attributes)
        y.shape = ir.Shape(["batch", channels, *[9 if before == "Relu" else 8] * 2])
        y.type = ir.TensorType(ir.DataType.FLOAT)
    x = np.random.default_rng(0).standard_normal((2, channels, 9, 9)).astype(np.float32)
    ours, theirs = both(g.model(g.op("GlobalAveragePool", "op", y)), x)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        *[((11, width), [1]) for width in (1, 2, 3, 4, 5, 8, 13, 31, 64, 197)],
        ((40, 50), [0, 1]),  # all
        ((33, 40), [0]),  # outer
        ((2, 3, 9, 7), [2, 3]),
        *[((3, rows, 7), [1]) for rows in (4, 5, 6, 7, 197, 300)],  # middle
        ((2, 300, 300), [1]),
        ((3, 380, 1), [1]),
        ((1, 197, 33), [1]),  # too short outside for a matrix product
        ((4, 5, 60, 17), [0, 3]),  # outer and inner
        ((38, 1, 9), [0, 2]),
        ((4, 5, 6, 7), [1, 3]),
        ((4, 5, 6, 7), [-1, 1]),
        ((4, 5, 6, 7), [0, 2]),
        ((3, 1, 38, 1), [1, 2]),
        ((7, 38, 1, 1), [1, 3]),
    ],
    ids=str,
)
@pytest.mark.parametrize("keep", [0, 1])
def test_sums_over_axes_are_equal_bit_for_bit(
    kind: str, shape: tuple[int, ...], axes: list[int], keep: int
) -> None:
    g = Graph(x=shape)
    model = g.model(g.op(kind, "op", g["x"], g.constant("axes", np.array(axes)), keepdims=keep))
    ours, theirs = both(model, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    assert ours.shape == theirs.shape
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("shape", "axes"), [((2, 600, 33), [1]), ((5, 2, 60), [0, 2])], ids=str)
def test_more_than_two_threads_count_for_short_outer_axes(
    shape: tuple[int, ...], axes: list[int]
) -> None:
    g = Graph(x=shape)
    model = g.model(g.op("ReduceSum", "op", g["x"], g.constant("axes", np.array(axes))))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    with packed(model.clone()) as source:
        one, two, three = (
            open_session(source, Level.ALL, threads=n).run({"x": x})["op.out"] for n in (1, 2, 3)
        )
    assert np.array_equal(one, two)
    assert not np.array_equal(two, three)  # and so says the docstring of `IntegerModel`
    assert np.array_equal(IntegerModel(model)(x), two)


def test_a_log_softmax_is_equal_to_the_last_bit_of_a_logarithm() -> None:
    x = wide()
    ours, theirs = both(single("LogSoftmax", axis=-1), x)
    total = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)
    bits = np.spacing(np.log(total).astype(np.float32)) + np.spacing(np.abs(theirs))
    assert np.all(np.abs(ours.astype(np.float64) - theirs) <= bits)
    assert np.mean(ours == theirs) > 0.9


def test_what_has_no_elements_stays_so() -> None:
    x = np.zeros((0, 5), np.float32)
    for kind in ("Softmax", "LogSoftmax"):
        assert IntegerModel(single(kind, ("n", 5), axis=-1))(x).shape == (0, 5)
    g = Graph(x=("n", 5))
    model = g.model(g.op("ReduceSum", "op", g["x"], g.constant("axes", np.array([0]))))
    assert np.array_equal(IntegerModel(model)(x), np.zeros((1, 5)))


@pytest.mark.parametrize("width", [1, 3, 7, 8, 9, 11, 12, 13, 15, 16, 17, 96, 129, 384])
@pytest.mark.parametrize("shifted", [False, True])
def test_layer_norm_is_equal_bit_for_bit(width: int, shifted: bool) -> None:
    rng = np.random.default_rng(width)
    g = Graph(x=(500, width))
    rows = [g.constant("scale", rng.uniform(0.5, 1.5, width).astype(np.float32))]
    if shifted:
        rows.append(g.constant("shift", rng.standard_normal(width).astype(np.float32)))
    model = g.model(g.op("LayerNormalization", "op", g["x"], *rows, axis=-1))
    ours, theirs = both(model, (rng.standard_normal((500, width)) * 2 + 0.3).astype(np.float32))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("width", [1, 3, 7, 8, 16, 17, 33, 64, 129, 197])
def test_softmax_is_equal_bit_for_bit(width: int) -> None:
    rng = np.random.default_rng(width)
    for shape, axis in (((50, width), -1), ((4, width, 5), 1)):
        x = (rng.standard_normal(shape) * 3).astype(np.float32)
        ours, theirs = both(single("Softmax", shape, axis=axis), x)
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("transposed", [False, True])
def test_float_convolutions(transposed: bool) -> None:
    rng = np.random.default_rng(0)
    g = Graph(x=(2, 4, 7, 7))
    weight = g.constant("w", rng.standard_normal((4, 4, 3, 3)).astype(np.float32))
    bias = g.constant("b", rng.standard_normal(4).astype(np.float32))
    kind = "ConvTranspose" if transposed else "Conv"
    model = g.model(g.op(kind, "op", g["x"], weight, bias, strides=[2, 2], pads=[1] * 4))
    ours, theirs = both(model, rng.standard_normal((2, 4, 7, 7)).astype(np.float32))
    assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "count"), [("BatchNormalization", 4), ("InstanceNormalization", 2)]
)
@pytest.mark.parametrize("width", [1, 5, 7, 8, 15, 33])
def test_norms_of_channels_are_equal_bit_for_bit(kind: str, count: int, width: int) -> None:
    rng = np.random.default_rng(width)
    shape = (2, 4, 3, width)
    g = Graph(x=shape)
    rows = [g.constant(f"c{i}", rng.uniform(0.5, 1.5, 4).astype(np.float32)) for i in range(count)]
    model = g.model(g.op(kind, "op", g["x"], *rows))
    ours, theirs = both(model, rng.standard_normal(shape).astype(np.float32))
    assert np.array_equal(ours, theirs)


LANES = {"avx512": AVX512, "avx2": AVX2, "sse": SSE}


def test_the_probe_knows_one_kind_of_lanes_from_the_others() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 61)).astype(np.float32)
    kinds = [softmax(x, lanes).tobytes() for lanes in LANES.values()]
    assert len(set(kinds)) == 3
    assert lanes_here() in LANES.values()


@pytest.mark.parametrize("lanes", LANES.values(), ids=LANES)
@pytest.mark.parametrize("width", [1, 3, 4, 7, 8, 9, 15, 16, 17, 33, 40, 197])
def test_lanes_add_as_registers_do(lanes: Lanes, width: int) -> None:
    x = np.random.default_rng(width).standard_normal((5, width)).astype(np.float32)
    assert np.array_equal(lanes.sums(x)[:, 0], [in_registers(row, lanes.width) for row in x])


def in_registers(row: np.ndarray[Any, Any], width: int) -> np.float32:
    """Number by number: full registers, their lanes folded, what is left over."""
    lanes = [np.float32(0)] * width
    whole = len(row) // 4 * 4 if width == 4 else len(row)
    for i, value in enumerate(row[:whole]):
        lanes[i % width] += value
    if width == 16:
        lanes = [a + b for a, b in zip(lanes[:8], lanes[8:], strict=True)]
    while len(lanes) > 1:
        halves = zip(lanes[: len(lanes) // 2], lanes[len(lanes) // 2 :], strict=True)
        pairs = zip(lanes[0::2], lanes[1::2], strict=True)
        lanes = [a + b for a, b in (halves if width == 4 else pairs)]
    total = lanes[0]
    for value in row[whole:]:
        total += value
    return total
