"""What looks at a simulation, or changes one, is given one."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxquant.errors import ConfigError


def require_simulation(sim: Any, technique: str) -> None:
    """Refuse what is no simulation.

    Raises:
        ConfigError: FXQ297.
    """
    if not isinstance(getattr(sim, "model", None), fx.GraphModule):
        what = f"{technique} was given a {type(sim).__name__} in the place of the simulation"
        fix = f"pass a QuantizationSimModel first: {technique}(sim, data)"
        raise ConfigError("FXQ297", what, fix=fix)
