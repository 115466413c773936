"""What the documents show works: Python blocks run, commands and files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fxquant.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = _blocks(README, "python")
    script = tmp_path / "example.py"  # tracing names lines of the user's file
    script.write_text(example)
    exec(compile(example, str(script), "exec"), {"__name__": "example"})
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"net.onnx", "net.encodings"} <= names


def test_commands_and_their_options_exist() -> None:
    text = " ".join(_blocks(README, "console")).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip().startswith("$ fxquant ")]
    assert len(lines) == 9
    for line in lines:
        _, _, name, *words = line.split()
        known = {opt for param in main.commands[name].params for opt in param.opts}
        assert {w for w in words if w.startswith("--")} <= known, line


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for document in DOCUMENTS:
        for target in re.findall(r"\$ make ([\w-]+)|`make ([\w-]+)`", _text(document)):
            assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", _text(document)):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document: str) -> None:
    for name in re.findall(
        r"`((?:fxquant|passes|models|tests|requirements)/[\w./]+)`", _text(document)
    ):
        if "my_" not in name and "NAME" not in name:
            assert (ROOT / name).exists(), name


def _text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")
