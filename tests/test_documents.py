"""Every Python block of the guides runs, in the order of its page; their names exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = (
    "accuracy.md", "concepts.md", "cpus.md", "debugging.md", "mixed_precision.md", "quickstart.md",
    "recipes.md", "training.md", "migrating/aimet.md", "migrating/quantize_static.md",
    "migrating/torchao.md", "migrating/vitis.md",
)  # fmt: skip


# PyTorch's compiler makes one of these itself when it meets an autograd function
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks):
        script = tmp_path / f"block_{number}.py"  # tracing names lines of the user's file
        script.write_text(block, encoding="utf-8")
        exec(compile(block, str(script), "exec"), names)


def test_every_guide_is_tested() -> None:
    with_code = {
        str(p.relative_to(ROOT / "docs"))
        for p in (ROOT / "docs").rglob("*.md")
        if "```python" in p.read_text(encoding="utf-8")
    }
    # written around files of the reader
    assert with_code - {"regions_and_targets.md"} == set(PAGES)


def _exists(name: str) -> bool:
    """Whether a dotted name leads to a module or to something in one."""
    found: object = None
    path = ""
    for part in name.split("."):
        path = f"{path}.{part}".lstrip(".")
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = importlib.import_module(path)
        except ModuleNotFoundError:
            return False
    return True


@pytest.mark.parametrize("page", [*PAGES, "regions_and_targets.md", "architecture.md"])
def test_names_and_codes_of_a_page_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w./-])fxquant(?:\.[A-Za-z_]\w*)+", text))
    assert not {name for name in names if not _exists(name)}
    codes = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert not {code for code in re.findall(r"FXQ\d{3}", text) if code not in codes}
