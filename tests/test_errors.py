"""`docs/errors.md` lists every error code with its cause and its fix."""

from __future__ import annotations

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
def test_every_code_has_a_row_that_says_what_is_wrong(code: str) -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith(f"| {code} |")]
    assert len(rows) == 1
    _, _, _, what, _, _ = re.split(r"(?<!\\)\|", rows[0])
    assert len(what.strip(" …")) > 8, rows[0]
