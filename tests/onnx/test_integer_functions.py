"""Float32 functions and operators against onnxruntime's, bit by bit where they have one form."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.runtime import Level, open_session, packed
from tests.onnx.qdq import Graph

SHAPE = (64, 129)


def single(kind: str, shape: tuple[int, ...] = SHAPE, **attributes: Any) -> ir.Model:
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
        ("LogSoftmax", {"axis": -1}, SHAPE),
        ("GlobalAveragePool", {}, (2, 3, 9, 8)),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4}, (2, 3, 9, 8)),
        ("GlobalMaxPool", {}, (2, 3, 9, 8)),
    ],
)
def test_sums_are_equal_to_a_few_last_bits(
    kind: str, attributes: dict[str, Any], shape: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    ours, theirs = both(single(kind, shape, **attributes), x)
    assert np.allclose(ours, theirs, rtol=4e-7, atol=1e-6)


@pytest.mark.parametrize("width", [1, 3, 7, 8, 16, 17, 96, 129, 384])
@pytest.mark.parametrize("shifted", [False, True])
def test_layer_norm_is_equal_bit_for_bit(width: int, shifted: bool) -> None:
    rng = np.random.default_rng(width)
    g = Graph(x=(50, width))
    rows = [g.constant("scale", rng.uniform(0.5, 1.5, width).astype(np.float32))]
    if shifted:
        rows.append(g.constant("shift", rng.standard_normal(width).astype(np.float32)))
    model = g.model(g.op("LayerNormalization", "op", g["x"], *rows, axis=-1))
    ours, theirs = both(model, (rng.standard_normal((50, width)) * 2 + 0.3).astype(np.float32))
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


def test_batch_norm() -> None:
    rng = np.random.default_rng(0)
    g = Graph(x=(2, 4, 7, 7))
    rows = [g.constant(f"c{i}", rng.uniform(0.5, 1.5, 4).astype(np.float32)) for i in range(4)]
    ours, theirs = both(
        g.model(g.op("BatchNormalization", "op", g["x"], *rows)),
        rng.standard_normal((2, 4, 7, 7)).astype(np.float32),
    )
    assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-6)
