"""A QDQ model without its grids computes on floats what its integers stood for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from fxquant.onnx.ort.dequantized import without_pairs
from fxquant.onnx.session import Level, open_session, packed
from tests.helpers.qdq import Graph

SCALE, ZERO = np.float32(0.1), 3


def _results(model: ir.Model) -> NDArray[Any]:
    numbers = np.random.default_rng(0).uniform(0, 2, (2, 3, 4)).astype(np.float32)
    names = [str(v.name) for v in model.graph.inputs]
    feeds = dict(zip(names, numbers, strict=False))
    with packed(model) as source:
        (found,) = open_session(source, Level.OFF).run(feeds).values()
    return np.asarray(found)


def _joined(second: float, kind: str) -> ir.Model:
    """Integers on the grid of 0.1 and on another one are joined and dequantized as one tensor."""
    g = Graph(x=(3, 4), y=(3, 4))
    a, b = (
        g.quantized(n, g[n], s, ZERO).producer() for n, s in (("x", float(SCALE)), ("y", second))
    )
    assert a is not None
    assert b is not None
    condition = [g.constant("c", np.arange(12).reshape(3, 4) % 2 == 0)] if kind == "Where" else []
    options = {} if condition else {"axis": 0}
    joined = g.op(kind, "join", *condition, a.inputs[0], b.inputs[0], **options)
    return g.model(g.op("DequantizeLinear", "dq", joined, *a.inputs[1:]))


@pytest.mark.parametrize("kind", ["Concat", "Where"])
def test_joined_integers_become_floats_where_they_lie_on_one_grid(kind: str) -> None:
    model = _joined(float(SCALE), kind)
    plain = without_pairs(model)
    assert [n.op_type for n in plain.graph] == [kind, "Identity"]  # which names the output
    assert np.abs(_results(plain) - _results(model)).max() <= SCALE / 2 + 1e-6


@pytest.mark.parametrize("kind", ["Concat", "Where"])
def test_integers_of_two_grids_stay_integers(kind: str) -> None:
    model = _joined(0.2, kind)
    assert np.array_equal(_results(without_pairs(model)), _results(model))


@pytest.mark.parametrize("kind", ["Pad", "Where"])
def test_constants_beside_moved_integers_become_the_numbers_that_they_stand_for(kind: str) -> None:
    g = Graph(x=(3, 4))
    node = g.quantized("x", g["x"], float(SCALE), ZERO).producer()
    assert node is not None
    if kind == "Pad":
        operands = [node.inputs[0], g.constant("pads", np.array([0, 1, 0, 1]))]
        moved = g.op("Pad", "move", *operands, g.constant("by", np.uint8(13)))
    else:
        condition = g.constant("c", np.arange(12).reshape(3, 4) % 2 == 0)
        stored = g.constant("by", np.arange(12, dtype=np.uint8).reshape(3, 4))
        moved = g.op("Where", "move", condition, node.inputs[0], stored)
    model = g.model(g.op("DequantizeLinear", "dq", moved, *node.inputs[1:]))
    plain = without_pairs(model)
    assert [n.op_type for n in plain.graph] == [kind, "Identity"]
    assert np.abs(_results(plain) - _results(model)).max() <= SCALE / 2 + 1e-6


def test_the_places_that_a_pool_gives_stay_integers() -> None:
    g = Graph(x=(1, 1, 4, 4))
    node = g.quantized("x", g["x"], float(SCALE), ZERO).producer()
    assert node is not None
    pool = ir.node("MaxPool", [node.inputs[0]], {"kernel_shape": [2, 2]}, num_outputs=2, name="p")
    for name, value in zip(("pool", "places"), pool.outputs, strict=True):
        value.name = name
    pool.outputs[1].type = ir.TensorType(ir.DataType.INT64)
    g.nodes.append(pool)
    real = g.op("DequantizeLinear", "dq", pool.outputs[0], *node.inputs[1:])
    plain = without_pairs(g.model(real, pool.outputs[1]))
    assert [n.op_type for n in plain.graph] == ["MaxPool", "Identity"]
    found = {str(v.name): v.dtype for v in plain.graph.outputs}
    assert found["places"] is ir.DataType.INT64
