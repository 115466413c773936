"""Every Python block of the guides runs, in the order of its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = (
    "accuracy.md", "concepts.md", "cpus.md", "debugging.md", "mixed_precision.md", "quickstart.md",
    "recipes.md", "training.md", "migrating/quantize_static.md", "migrating/torchao.md",
    "migrating/vitis.md",
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
