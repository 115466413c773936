"""The table of ONNX operators: names that exist, and traits that onnxruntime shows."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime.capi.onnxruntime_pybind11_state as runtime
import pytest
from onnx.reference import ReferenceEvaluator

from fxquant.onnx.integer.interpreter import _EXACT
from fxquant.onnx.integer.kernels.registry import kernels
from fxquant.onnx.integer.rewrite import match_groups
from fxquant.onnx.lowering.unsigned_products import make_unsigned
from fxquant.onnx.parity import error_bounds, error_functions
from fxquant.onnx.qdq import TABLE, Trait, data_operands, keeps_grid, operators, results
from fxquant.onnx.session import optimized
from tests.helpers.qdq import Graph

ONNX = Path(__file__).parents[2] / "fxquant" / "onnx"
NAMES = {schema.name for schema in onnx.defs.get_all_schemas()} | {
    schema.name for schema in runtime.get_all_operator_schema()
}


def test_every_operator_of_the_table_exists() -> None:
    assert not TABLE.keys() - NAMES


def test_every_operator_with_a_rule_or_kernel_exists() -> None:
    tables: tuple[Any, ...] = (
        error_bounds._RULES, error_functions.RULES, match_groups._RULES, kernels(), _EXACT
    )  # fmt: skip
    assert not {name for table in tables for name in table} - NAMES


def _strings(node: ast.AST) -> set[str]:
    return {
        n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }


def test_every_operator_that_the_code_asks_for_exists() -> None:
    asked: dict[str, str] = {}
    for path in ONNX.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Compare) or not isinstance(node.left, ast.Attribute):
                continue
            if node.left.attr == "op_type":
                asked |= dict.fromkeys(_strings(node), path.name)
    assert {"Resize", "MatMul", "Softmax"} <= asked.keys()
    assert not {name: path for name, path in asked.items() if name not in NAMES}


def test_no_file_lists_what_the_table_knows() -> None:
    moves = operators(Trait.MOVES | Trait.CHOOSES)
    found = {}
    for path in ONNX.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if path.name == "qdq.py" or not isinstance(node, ast.Set | ast.Tuple | ast.List):
                continue
            named = {e.value for e in node.elts if isinstance(e, ast.Constant)} & moves
            if len(named) > 4:
                found[f"{path.name}:{node.lineno}"] = named
    assert not found


# operator -> its other operands and its attributes, on operands of 1 x 4 x 4 x 4
_CASES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "Reshape": (([1, -1],), {}),
    "Transpose": ((), {"perm": [0, 2, 3, 1]}),
    "Squeeze": (([0],), {}),
    "Unsqueeze": (([0],), {}),
    "Flatten": ((), {}),
    "Slice": (([0], [2], [1]), {}),
    "Expand": (([2, 4, 4, 4],), {}),
    "Tile": (([2, 1, 1, 1],), {}),
    "Gather": (([1, 2],), {"axis": 1}),
    "GatherElements": ((np.zeros((1, 2, 4, 4), np.int64),), {"axis": 1}),
    "GatherND": (([0, 1],), {}),
    "ScatterND": (([[0]],), {}),
    "ScatterElements": ((np.zeros((1, 4, 4, 4), np.int64),), {}),
    "Split": ((), {"axis": 1, "num_outputs": 2}),
    "Concat": ((), {"axis": 1}),
    "Where": ((np.arange(64).reshape(1, 4, 4, 4) % 2 == 0,), {}),
    "Pad": (([0, 0, 1, 1, 0, 0, 1, 1],), {}),
    "Resize": ((None, np.array([1, 1, 2, 2], np.float32)), {}),
    "DepthToSpace": ((), {"blocksize": 2}),
    "SpaceToDepth": ((), {"blocksize": 2}),
    "Identity": ((), {}),
    "Dropout": ((), {}),
    "MaxPool": ((), {"kernel_shape": [2, 2]}),
    "GlobalMaxPool": ((), {}),
    "ReduceMax": (([1],), {}),
    "ReduceMin": (([1],), {}),
}
_SECOND = {"Concat": 1, "Where": 2, "ScatterND": 2, "ScatterElements": 2}
_CASED = sorted((operators(Trait.MOVES | Trait.CHOOSES)) - {"NhwcMaxPool"})  # no file holds it


def _operands(name: str, x: Any, y: Any, constant: Any) -> list[Any]:
    """Operands in their order: data where the operator takes data, constants elsewhere."""
    others = [None if o is None else constant(i, o) for i, o in enumerate(_CASES[name][0])]
    if name == "Where":
        return [*others, x, y]
    if name in _SECOND:
        return [x, *others, y]
    return [x, *others]


def _group(name: str, dtype: Any) -> ir.Model:
    """`Q -> DQ -> operator -> Q -> DQ`, all on one grid."""
    g = Graph(x=(1, 4, 4, 4), y=(1, 4, 4, 4))
    x = g.quantized("qx", g["x"], 0.1, 3, dtype)
    y = g.quantized("qy", g["y"], 0.1, 3, dtype) if name in _SECOND else None

    def constant(i: int, value: Any) -> ir.Value:
        array = np.asarray(value)
        return g.constant(f"c{i}", array)

    node = ir.node(
        name, _operands(name, x, y, constant), _CASES[name][1], name="op",
        num_outputs=2 if name == "Split" else 1,
    )  # fmt: skip
    for i, value in enumerate(node.outputs):
        value.name = f"op{i}"
    g.nodes.append(node)
    return g.model(*(g.quantized(f"out{i}", v, 0.1, 3, dtype) for i, v in enumerate(node.outputs)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", _CASED)
def test_onnxruntime_leaves_out_the_pairs_that_the_table_says(
    name: str, dtype: Any, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    ir.save(_group(name, dtype), path)
    kinds = [node.op_type for node in optimized(path).graph]
    trait = Trait.BYTES if dtype is np.uint8 else Trait.WORDS
    vanished = name not in kinds and f"QLinear{name}" not in kinds
    assert vanished == (name in operators(Trait.VANISHES))
    # what comes in is quantized and what goes out dequantized, and nothing in between
    pairs = kinds.count("DequantizeLinear") - (2 if name == "Split" else 1)
    assert (pairs == 0) == (vanished or name in operators(trait))


@pytest.mark.parametrize("name", _CASED)
def test_results_are_elements_of_the_data_operands(name: str) -> None:
    x, y = np.arange(128, dtype=np.float32).reshape(2, 1, 4, 4, 4) + 1
    operands = _operands(name, x, y, lambda _, value: np.asarray(value))
    inputs = [None if o is None else ir.Value(name=f"i{i}") for i, o in enumerate(operands)]
    outputs = 2 if name == "Split" else 1
    node = ir.node(name, inputs, _CASES[name][1], num_outputs=outputs)
    for i, value in enumerate(node.outputs):
        value.name = f"o{i}"
    feeds = {f"i{i}": o for i, o in enumerate(operands) if o is not None}
    proto = ir.to_proto(node)
    run: Any = ReferenceEvaluator(proto, opsets={"": 21}).run
    found = run(None, feeds)
    data = [feeds[str(v.name)] for v in data_operands(node)]
    if name == "Pad":  # what it fills with, where nothing is given
        data.append(np.zeros((), np.float32))
    assert keeps_grid(node)
    assert [v.name for v in results(node)] == [f"o{i}" for i in range(outputs)]
    for array in found:
        assert set(array.reshape(-1)) <= set(np.concatenate([d.reshape(-1) for d in data]))
        if name in operators(Trait.SAME_SIZE):
            assert array.size == x.size


def test_a_resize_between_elements_and_a_scatter_that_adds_keep_no_grid() -> None:
    values = [ir.Value(name=n) for n in "abc"]
    linear = ir.node("Resize", [values[0], None, values[1]], {"mode": "linear"})
    adds = ir.node("ScatterND", values, {"reduction": "add"})
    assert not keeps_grid(linear)
    assert not keeps_grid(adds)
    assert keeps_grid(ir.node("ScatterND", values))


@pytest.mark.parametrize("adds", [False, True])
def test_integers_that_are_added_up_stay_signed(adds: bool) -> None:
    g = Graph(x=(4, 6), y=(1, 6))
    rows = [g["x"], g["y"]]
    x, y = (g.quantized(f"q{i}", v, 0.1, 3, np.int8).producer() for i, v in enumerate(rows))
    assert x is not None
    assert y is not None
    options = {"reduction": "add"} if adds else {}
    places = g.constant("places", np.array([[1]]))
    moved = g.op("ScatterND", "put", x.inputs[0], places, y.inputs[0], **options)
    keys = g.op("DequantizeLinear", "keys", moved, *x.inputs[1:])
    queries = g.quantized("queries", g.op("Identity", "copy", g["x"]), 0.1, 3)
    flipped = g.op("Transpose", "turn", keys, perm=[1, 0])
    model = g.model(g.op("MatMul", "scores", queries, flipped))
    assert make_unsigned(model.graph) == (frozenset() if adds else {"q0_q", "q1_q", "put.out"})


def test_narrow_floats_move_in_the_executor_as_they_are() -> None:
    from fxquant.onnx.integer.interpreter import Interpreter
    from fxquant.onnx.integer.kernels.lanes import Lanes

    x = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    places = np.array([[0, 2], [1, 0]])
    node = ir.node("GatherElements", [ir.Value(name="x"), ir.Value(name="i")], {"axis": 1})
    made = Interpreter(ir.Graph([], [], nodes=[]), {"": 21}, lanes=Lanes(8))
    (found,) = made.compute(node, [x, places])
    assert found is not None
    assert not made.outside
    assert found.dtype == ml_dtypes.bfloat16
    assert found.astype(np.float32).tolist() == [[0, 2], [4, 3]]
