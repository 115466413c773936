"""Targets: what one runtime or chip computes in integers, as one JSON file each."""

from __future__ import annotations

import functools
import importlib.resources
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fxquant.errors import ConfigError, SelectorError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ActivationGrid(_Frozen):
    """Grid of activations."""

    bitwidth: int = Field(8, ge=2, le=32)
    signed: bool = False
    symmetric: bool = False


class WeightGrid(_Frozen):
    """Grid of weights."""

    bitwidth: int = Field(8, ge=2, le=32)
    signed: bool = True
    symmetric: bool = True
    per_channel: bool = True


class OperatorRule(_Frozen):
    """How the target computes one operator.

    Attributes:
        output: "required": the integer kernel writes integers, so the output always has a grid;
            "optional": it can write floats, so the output has one only where a consumer needs it.
        kernel: "float" when the runtime dequantizes and computes in floating point all the same.
        second: "symmetric" when the second operand of a product wants a symmetric signed grid.
        elementwise: stays floating point between floating-point neighbours.
        per_channel: False where weights must have one grid for all channels.
        only: argument name -> values for which the rule holds.
    """

    output: Literal["required", "optional"] = "required"
    kernel: Literal["integer", "float"] = "integer"
    second: Literal["symmetric"] | None = None
    elementwise: bool = False
    per_channel: bool = True
    only: dict[str, list[Any]] = Field(default_factory=dict)

    def refuses(self, arguments: Mapping[str, Any]) -> str | None:
        """Why the rule does not hold for these arguments, or None."""
        for name, allowed in self.only.items():
            value = arguments.get(name)
            plain = list(value) if isinstance(value, tuple) else value
            if plain not in allowed:
                return f"{name}={value!r} has no integer kernel"
        return None


class Target(_Frozen):
    """A runtime or chip: its grids and its integer operators.

    Attributes:
        name: what `QuantizationSimModel(target=...)` takes.
        absorbs: activations whose producer's kernel takes them in.
        operators: row name -> rule; what is not listed is computed in floating point.
    """

    name: str
    description: str = ""
    activation: ActivationGrid = ActivationGrid()
    weight: WeightGrid = WeightGrid()
    absorbs: tuple[str, ...] = ()
    operators: dict[str, OperatorRule] = Field(default_factory=dict)


def available() -> list[str]:
    """Names of the targets that are shipped."""
    files = importlib.resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json"))


@functools.cache
def load_target(name: str) -> Target:
    """A shipped target by name.

    Raises:
        SelectorError: FXQ210, there is no such target.
        ConfigError: FXQ211, the file does not follow the schema.
    """
    if name not in available():
        known = ", ".join(available())
        hint = nearest(name, available()) or f"one of: {known}"
        raise SelectorError("FXQ210", f"there is no target {name!r}", fix=hint)
    text = (importlib.resources.files(__name__) / f"{name}.json").read_text(encoding="utf-8")
    try:
        return Target.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError("FXQ211", f"target {name!r} is not valid: {error}") from error
