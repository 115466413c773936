"""QuantConfig: what to quantize and how, frozen and handed in.

Fields left at None take the target's value, so an empty configuration means "as the target runs
fastest and most faithfully".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fxquant.errors import ConfigError


class QuantConfig(BaseModel):
    """What to quantize and how.

    Attributes:
        activation_bitwidth: bits of activations, 2 to 32.
        activation_symmetric: whether activation grids are symmetric (and then signed).
        weight_bitwidth: bits of weights, 2 to 32.
        weight_symmetric: whether weight grids are symmetric.
        per_channel: one weight grid per output channel instead of one per tensor.
        quantize_bias: put biases on their int32 grid.
        quantize_outputs: give the graph's outputs a grid even where the kernel can write floats.
        fold_batch_norms: fold batch norms into the convolution before them.
        keep_float: paths or globs of modules that stay in floating point.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    activation_bitwidth: int | None = Field(None, ge=2, le=32)
    activation_symmetric: bool | None = None
    weight_bitwidth: int | None = Field(None, ge=2, le=32)
    weight_symmetric: bool | None = None
    per_channel: bool | None = None
    quantize_bias: bool = True
    quantize_outputs: bool = False
    fold_batch_norms: bool = True
    keep_float: tuple[str, ...] = ()

    @classmethod
    def load(cls, source: QuantConfig | dict[str, Any] | str | Path | None) -> QuantConfig:
        """A configuration from itself, a mapping, a JSON file or None (all defaults).

        Raises:
            ConfigError: FXQ220 the file cannot be read, FXQ221 a key or value is wrong.
        """
        if source is None:
            return cls()
        if isinstance(source, QuantConfig):
            return source
        data = source if isinstance(source, dict) else _read(Path(source))
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(p) for p in first["loc"]) or "the configuration"
            known = ", ".join(cls.model_fields)
            raise ConfigError(
                "FXQ221", f"{key}: {first['msg']}", fix=f"known keys: {known}"
            ) from error

    def replace(self, **changes: Any) -> QuantConfig:
        """A copy with some fields changed; values are checked."""
        return QuantConfig.load({**self.model_dump(), **changes})


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("FXQ220", f"cannot read the configuration {path}: {error}") from error
