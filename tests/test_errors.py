"""`docs/errors.md` lists every error code with its cause and its fix."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.helpers import error_index

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "errors.md"


def test_the_index_is_that_of_the_code(accept: bool) -> None:
    page = error_index.page()
    if accept:
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, "pytest tests/test_errors.py --accept"


def _codes() -> list[str]:
    """Every code that stands anywhere in the library, raised or told of."""
    found = set()
    for folder in ("fxquant", "passes"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r"FXQ\d{3}", path.read_text(encoding="utf-8")))
    return sorted(found)


@pytest.mark.parametrize("code", _codes())
def test_every_code_has_a_row_that_says_what_is_wrong_and_what_to_do(code: str) -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith(f"| {code} |")]
    assert len(rows) == 1
    _, _, _, what, fix, _ = re.split(r"(?<!\\)\|", rows[0])
    assert len(what.strip(" …")) > 8, rows[0]
    assert len(fix.strip(" …")) > 8, rows[0]


def test_every_error_gives_a_fix_where_it_is_raised() -> None:
    """An error without one can only hide among others of its code."""
    without = [
        f"{path.name}:{node.lineno}"
        for folder in ("fxquant", "passes")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id.endswith("Error")
        and node.args
        and re.match(r"['\"]FXQ", ast.unparse(node.args[0]))
        and not any(keyword.arg == "fix" for keyword in node.keywords)
    ]
    assert not without
