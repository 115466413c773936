"""What a result may depend on: versions, the machine, seeds and settings."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from fxquant._version import __version__

if TYPE_CHECKING:
    from fxquant.sim import QuantizationSimModel

_PACKAGES = ("torch", "onnxruntime", "onnx", "numpy")


def environment(sim: QuantizationSimModel) -> dict[str, Any]:
    """Versions and settings as plain data."""
    versions = {"fxquant": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # built into the interpreter's own tree
            continue
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "torch threads": torch.get_num_threads(),
        "torch seed": str(torch.initial_seed()),  # 64 bits are more than a number of JavaScript
    }
    settings = {"target": sim.target.name, "scheme": sim.quant_scheme.name}
    config = json.loads(sim.config.model_dump_json(exclude_defaults=True))
    return {"versions": versions, "machine": machine, "settings": settings, "config": config}
