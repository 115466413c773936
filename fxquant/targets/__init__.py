"""Targets: what one runtime or chip computes in integers, as one JSON file each.

A new target is a new file beside this one, or a `Target` that is handed in.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib.resources

from pydantic import ValidationError

from fxquant.errors import ConfigError, SelectorError, nearest
from fxquant.targets.rules import OperatorRule, Violation
from fxquant.targets.schema import (
    DEPLOYMENTS,
    ActivationType,
    BiasGrid,
    Deploy,
    RoundMode,
    ScaleKind,
    Search,
    Shifts,
    Target,
    WeightType,
)

__all__ = [
    "DEPLOYMENTS",
    "ActivationType",
    "BiasGrid",
    "Deploy",
    "OperatorRule",
    "RoundMode",
    "ScaleKind",
    "Search",
    "Shifts",
    "Target",
    "Violation",
    "WeightType",
    "available",
    "load_target",
]


def available() -> list[str]:
    """Names of the targets that are shipped."""
    files = importlib.resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json"))


def load_target(name: str | Target) -> Target:
    """A shipped target by its name or one of its aliases; a `Target` is returned as it is.

    Raises:
        SelectorError: FXQ260, there is no such target.
        ConfigError: FXQ261, the file does not follow the schema.

    Example:
        >>> load_target("AMD_AIE2_Nx4_Overlay_cfg0").name
        'amd_aie2'
    """
    if isinstance(name, Target):
        return name
    if not isinstance(name, str):
        what = f"a target is named by a text, not by a {type(name).__name__}"
        raise SelectorError("FXQ260", what, fix=f"one of: {', '.join(available())}")
    return _found(name)


@functools.cache
def _found(name: str) -> Target:
    if name in available():
        return _read(name)
    for known in available():
        target = _read(known)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in target.aliases):
            return target
    hint = nearest(name, available()) or f"one of: {', '.join(available())}"
    raise SelectorError("FXQ260", f"there is no target {name!r}", fix=hint)


@functools.cache
def _read(name: str) -> Target:
    text = (importlib.resources.files(__name__) / f"{name}.json").read_text(encoding="utf-8")
    try:
        return Target.model_validate_json(text)
    except ValidationError as error:
        what = f"target {name!r} is not valid: {error}"
        fix = "correct its JSON file; fxquant/targets/schema.py describes every key"
        raise ConfigError("FXQ261", what, fix=fix) from error
