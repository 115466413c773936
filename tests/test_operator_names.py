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
from fxquant.onnx.lowering import emitters
from fxquant.tracing.shape_rules import RULES, UNLISTED

ROOT = Path(__file__).parent.parent
# rows whose names say something else in most files: types, arguments, methods of Python
_WORDS = frozenset({"any", "all", "float", "int", "bool", "bfloat16", "max", "min", "to", "detach"})
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
