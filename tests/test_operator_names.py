"""An operator is one row: names used as keys elsewhere mean something, and few files use any."""

from __future__ import annotations

import ast
import operator
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fxquant import ops
from fxquant.onnx.lowering import complex_pairs, emitters
from fxquant.onnx.runs import value_dependent
from fxquant.passes import align_grids, approximate
from fxquant.ptq.cross_layer import channel_flow
from fxquant.tracing.shape_rules import RULES, UNLISTED

ROOT = Path(__file__).parent.parent
# rows whose names say something else in most files: types, arguments, methods of Python
_WORDS = frozenset(
    {
        "any",
        "all",
        "amax",
        "float",
        "identity",
        "int",
        "bool",
        "bfloat16",
        "max",
        "min",
        "to",
        "detach",
        "stack",  # of boxes in a picture
        "t",  # of a time or a tensor
    }
)
_MOST_FILES = 5  # `add`, which is also arithmetic on sizes, a shift rule, a key of two passes


def _files_that_name_a_row() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for folder in (ROOT / "fxquant", ROOT / "passes"):
        for path in folder.rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith(
                ("fxquant/passes/", "fxquant/models/", "fxquant/onnx/lowering/emit/")
            ):
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and node.value in ops.TABLE.rows:
                    found[node.value].add(name)
    return {row: files - {"fxquant/ops.py"} for row, files in found.items()}


def test_few_files_outside_of_the_table_and_the_emitters_name_an_operator() -> None:
    files = _files_that_name_a_row()
    assert len(files["softmax"]) == 1, files["softmax"]  # the pass that writes one
    assert not files.get("gelu")
    crowded = {n: sorted(f) for n, f in files.items() if len(f) > _MOST_FILES and n not in _WORDS}
    assert not crowded


def test_every_word_for_sizes_has_a_rule() -> None:
    assert RULES.keys() == set(ops.Sizes)


@pytest.mark.parametrize("name", UNLISTED)
def test_a_function_with_a_rule_of_its_own_exists_and_has_no_row(name: str) -> None:
    spaces = (torch, F, torch.Tensor, operator)
    assert name == "getattr" or any(hasattr(space, name) for space in spaces)
    assert ops.TABLE.named(name) is None


def test_rows_that_share_a_plain_name_have_one_rule_for_sizes() -> None:
    found: dict[str, set[ops.Sizes]] = defaultdict(set)
    table = ops.TABLE
    for target, spelling in (*table._functions.items(), *table._methods.items()):
        name = str(getattr(target, "__name__", target))
        if not name.startswith("__"):
            found[name].add(spelling.op.sizes)
    assert not {name: sizes for name, sizes in found.items() if len(sizes) > 1}


def test_an_emitter_is_for_a_row() -> None:
    emitters.emitter_of_row("relu")  # loads every family
    assert not emitters._BY_ROW.keys() - ops.TABLE.rows.keys()


# keys of tables outside of the row: each must be a row, or it decides nothing
NAMED = {
    "approximate": set(approximate._SIMPLER),
    "align_grids": set(align_grids._ALIGNED),
    "channel_flow": (
        channel_flow._PASS | channel_flow._MOVES | channel_flow._JOINS | channel_flow._ALONG
    ),
}


@pytest.mark.parametrize("table", NAMED)
def test_a_key_of_a_table_is_a_row(table: str) -> None:
    assert not NAMED[table] - ops.TABLE.rows.keys()


def test_functions_that_are_looked_up_by_name_exist() -> None:
    spaces = (torch, torch.Tensor)
    methods = value_dependent._SHAPE_METHODS | value_dependent._LIKE
    assert not {n for n in complex_pairs._MOVES if not any(hasattr(s, n) for s in spaces)}
    assert not {n for n in methods | value_dependent._SHAPE_ATTRIBUTES
                if not hasattr(torch.Tensor, n)}  # fmt: skip


def _compared_names() -> dict[str, str]:
    """Texts that `row.name` is compared with or looked up by, and the files."""
    found: dict[str, str] = {}
    for folder in ("fxquant", "passes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.Compare):
                    continue
                sides = [node.left, *node.comparators]
                if not any(ast.unparse(s) in _ROW_NAMES for s in sides):
                    continue
                texts = (n.value for s in sides for n in ast.walk(s) if isinstance(n, ast.Constant))
                found |= dict.fromkeys((t for t in texts if isinstance(t, str)), path.name)
    return found


_ROW_NAMES = ("row.name", "op.name", "call.row.name", "self.row.name", "c.row.name", "found.name")


def test_a_name_that_a_row_is_compared_with_is_a_row() -> None:
    found = _compared_names()
    assert "linear" in found
    assert not {n: path for n, path in found.items() if n not in ops.TABLE.rows}
