"""What is shipped as JSON files, targets and presets: their names without an import of torch."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

DEFAULT_TARGET = "onnxruntime_x86"


@functools.cache
def targets() -> tuple[str, ...]:
    """Names of the targets."""
    return tuple(sorted(path.stem for path in _folder("targets").glob("*.json")))


@functools.cache
def presets() -> tuple[str, ...]:
    """Names of the presets, the one that changes nothing first."""
    names = sorted(path.stem for path in _folder("presets").glob("*.json"))
    return tuple(sorted(names, key=lambda name: name != "default"))


def content(kind: str, name: str) -> dict[str, Any]:
    """What a file says.

    Args:
        kind: "targets" or "presets".
        name: of the file, without its ending.
    """
    found: dict[str, Any] = json.loads((_folder(kind) / f"{name}.json").read_text("utf-8"))
    return found


def _folder(kind: str) -> Path:
    return Path(__file__).parent.parent / kind
