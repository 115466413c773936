"""What a result may depend on beside its recipe: versions of the tools, and the CPU."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from typing import TYPE_CHECKING

import torch

from fxquant._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

# what computes, and what writes the file
_PACKAGES = ("torch", "numpy", "onnx", "onnx-ir", "onnxruntime")


def versions() -> dict[str, str]:
    """Versions of what computes and writes, by name."""
    found = {"fxquant": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # of a tree of its own
            found[name] = importlib.metadata.version(name)
    return found


def environment() -> dict[str, str]:
    """Versions, and what the CPU computes with; nothing that names the machine or its user."""
    from fxquant.onnx.ort.cpu import this_cpu  # and onnxruntime, which a search may do without

    return {
        **versions(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "integer products": this_cpu().products,
    }


def differing(recorded: Mapping[str, str], here: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What differs between two environments: the value of each by name; "" where one has none."""
    names = dict.fromkeys((*recorded, *here))
    pairs = {name: (recorded.get(name, ""), here.get(name, "")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
