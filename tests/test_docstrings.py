"""The examples in the docstrings of all modules run and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

from fxquant.onnx.lowering import emitters

PACKAGE = Path(__file__).parent.parent / "fxquant"


def _modules(folder: Path, name: str) -> list[str]:
    """Modules with an example; links are followed, to passes."""
    found = []
    for path in sorted(folder.iterdir()):
        own = name if path.stem == "__init__" else f"{name}.{path.stem}"
        if path.is_dir() and own != "fxquant.models":
            found += _modules(path, own)
        elif path.suffix == ".py" and ">>>" in path.read_text(encoding="utf-8"):
            found.append(own)
    return found


@pytest.mark.parametrize("name", _modules(PACKAGE, "fxquant"))
def test_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    emitters.load()
    monkeypatch.setattr(emitters, "_BY_ROW", dict(emitters._BY_ROW))  # an example adds to it
    assert doctest.testmod(importlib.import_module(name)).failed == 0
