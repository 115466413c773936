"""Reading files of any tool, whole or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fxquant.errors import ExportError
from fxquant.onnx.io.reader import read_model, tidy
from tests.helpers.qdq import Graph


def written(folder: Path) -> Path:
    g = Graph(x=(2, 8))
    weight, _ = g.weight("w", (8, 6), axis=1)
    return g.save(folder, g.op("MatMul", "fc", g["x"], weight))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_part_of_a_file_is_refused(tmp_path: Path, share: float) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ExportError, match="FXQ511"):
        read_model(path)


def external(folder: Path) -> Path:
    model = read_model(written(folder))
    path = folder / "external.onnx"
    ir.save(model, path, external_data="weights.bin", size_threshold_bytes=0)
    return path


def test_weights_beside_the_model_are_read(tmp_path: Path) -> None:
    model = read_model(external(tmp_path))
    stored = model.graph.initializers["w"].const_value
    assert stored is not None
    assert stored.numpy().shape == (8, 6)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ExportError, match=r"FXQ570.*missing"):
        read_model(path)


def test_weights_that_are_cut_off_are_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:10])
    with pytest.raises(ExportError, match=r"FXQ570.*too short"):
        read_model(path)


def test_nodes_come_in_order_and_have_names() -> None:
    g = Graph(x=(2, 3))
    first = g.op("Relu", "", g["x"])
    second = g.op("Sqrt", "", first)
    first.name, second.name = "a", "b"
    g.nodes.reverse()
    model = tidy(g.model(second))
    assert [(n.op_type, n.name) for n in model.graph] == [("Relu", "Relu(a)"), ("Sqrt", "Sqrt(b)")]


def test_names_that_are_taken_are_not_given_twice() -> None:
    g = Graph(x=(2, 3))
    first = g.op("Relu", "Sqrt(b)", g["x"])
    second = g.op("Sqrt", "", first)
    second.name = "b"
    assert [n.name for n in tidy(g.model(second)).graph] == ["Sqrt(b)", "Sqrt(b)_1"]


def test_constant_nodes_are_initializers() -> None:
    g = Graph(x=(2, 3))
    value = ir.tensor(np.ones(3, np.float32))
    made = g.op("Add", "add", g["x"], g.op("Constant", "c", value=value))
    model = tidy(g.model(made))
    assert [n.op_type for n in model.graph] == ["Add"]


def test_identities_are_gone_unless_they_make_an_output() -> None:
    g = Graph(x=(2, 3))
    inner = g.op("Relu", "relu", g.op("Identity", "first", g["x"]))
    model = tidy(g.model(g.op("Identity", "last", inner)))
    assert [n.name for n in model.graph] == ["relu", "last"]


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    first = g.op("Add", "a", g["x"], g["x"])
    second = g.op("Sqrt", "b", first)
    g.nodes[0].replace_input_with(1, second)
    with pytest.raises(ExportError, match="FXQ511"):
        read_model(g.save(tmp_path, second))
