"""What a search for mixed precision is asked for, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from fxquant.errors import ConfigError

if TYPE_CHECKING:
    from fxquant.mixed_precision.search import Technique
    from fxquant.sim import QuantizationSimModel

Cost = Literal["size", "bit_operations", "latency"]
COSTS: tuple[str, ...] = get_args(Cost)


@dataclass(frozen=True)
class Options:
    """The arguments of `choose_mixed_precision`; `allowed` is `allowed_accuracy_drop`."""

    evaluate: Callable[[Any], Any] | None
    data: Any
    allowed: float | None
    cost: str
    sensitivity: str | None
    techniques: tuple[Technique, ...]
    samples: int
    points: int
    trials: int
    latency: bool | None
    rounds: int
    threads: int | None

    @property
    def by_score(self) -> bool:
        """Whether groups are judged alone by `evaluate`."""
        return self.evaluate is not None and self.sensitivity != "sqnr"

    def check(self, sim: QuantizationSimModel) -> None:
        """Refuse what does not go together."""
        fixes = {
            f"cost={self.cost!r} is unknown": (
                self.cost not in COSTS, f"one of {', '.join(COSTS)}"),
            f"sensitivity={self.sensitivity!r} is unknown": (
                self.sensitivity not in (None, "evaluate", "sqnr"), '"evaluate" or "sqnr"'),
            "neither evaluate nor data is given": (
                self.evaluate is None and self.data is None, "pass one of them, or both"),
            "data are a function, and evaluate is not given": (
                self.evaluate is None and callable(self.data), "pass batches, or evaluate="),
            "data can be gone through once": (
                isinstance(self.data, Iterator), "pass a list of batches, or a loader"),
            "evaluate is no function": (
                self.evaluate is not None and not callable(self.evaluate), "pass function(model)"),
            "sensitivity is asked for by evaluate, which is not given": (
                self.sensitivity == "evaluate" and self.evaluate is None, "pass evaluate="),
            "sensitivity is asked for by sqnr, and no data are given": (
                self.sensitivity == "sqnr" and self.data is None, "pass data="),
            f"allowed_accuracy_drop={self.allowed!r} is no drop": (
                self.allowed is not None and not _is_drop(self.allowed), "pass 0 or more, or None"),
            "a technique is no function": (
                not all(map(callable, self.techniques)), "pass functions of (sim, data)"),
            f"the latency of {sim.target.name} cannot be measured here": (
                self.cost == "latency" and not sim.target.contrib, 'cost="bit_operations"'),
        }  # fmt: skip
        for what, (wrong, fix) in fixes.items():
            if wrong:
                raise ConfigError("FXQ286", what, fix=fix)
        for name, least in {"samples": 1, "points": 1, "trials": 0, "rounds": 1}.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                what = f"{name}={value!r} is no such number"
                raise ConfigError("FXQ286", what, fix=f"pass {least} or more")


def _is_drop(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < math.inf
