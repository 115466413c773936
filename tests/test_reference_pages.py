"""Pages made from tables are those of the tables, and the reference lists every public name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import reference_pages

DOCS = Path(__file__).parent.parent / "docs"
PACKAGES = (
    "fxquant", "fxquant.ptq", "fxquant.qat", "fxquant.distributed", "fxquant.vitis",
    "fxquant.aimet.quantsim", "fxquant.aimet.adaround", "fxquant.aimet.utils",
)  # fmt: skip
PAGES = {
    "operators.md": reference_pages.operators_page,
    "configuration.md": reference_pages.configuration_page,
}


@pytest.mark.parametrize(("name", "make"), PAGES.items(), ids=list(PAGES))
def test_a_page_is_that_of_its_table(name: str, make: Callable[[], str], accept: bool) -> None:
    if accept:
        (DOCS / name).write_text(make(), encoding="utf-8")
    found = (DOCS / name).read_text(encoding="utf-8")
    assert found == make(), "pytest tests/test_reference_pages.py --accept"


def _listed() -> set[str]:
    """Full names of the summaries in `docs/api`."""
    found = set()
    for page in (DOCS / "api").glob("*.md"):
        package = ""
        for line in page.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"\.\. currentmodule:: (\S+)", line):
                package = match[1]
            elif match := re.match(r"   (\w+)$", line):
                found.add(f"{package}.{match[1]}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package: str) -> None:
    public = {
        name for name in importlib.import_module(package).__all__
        if name not in ("__version__", "quantization")
    }  # fmt: skip
    # a name that two packages show stands once
    listed = {name.rpartition(".")[2] for name in _listed()}
    assert public <= listed, public - listed


def test_every_listed_name_exists() -> None:
    for name in _listed():
        package, _, short = name.rpartition(".")
        assert hasattr(importlib.import_module(package), short), name
