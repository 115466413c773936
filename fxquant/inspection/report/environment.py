"""What a result may depend on: versions, the machine, seeds and settings."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

import torch

from fxquant.records.versions import versions

if TYPE_CHECKING:
    from fxquant.sim import QuantizationSimModel


def environment(sim: QuantizationSimModel) -> dict[str, Any]:
    """Versions and settings as plain data."""
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "torch threads": torch.get_num_threads(),
        "torch seed": str(torch.initial_seed()),  # 64 bits are more than a number of JavaScript
    }
    settings = {"target": sim.target.name, "scheme": sim.quant_scheme.name}
    config = json.loads(sim.config.model_dump_json(exclude_defaults=True))
    return {"versions": versions(), "machine": machine, "settings": settings, "config": config}
