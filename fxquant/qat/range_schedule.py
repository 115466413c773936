"""Ranges that learn at rates of their own and stop learning one after the other.

Ranges near the input settle early, and those of weights disturb each other for longer. A schedule
gives the ranges at some paths a factor to the learning rate, and a step from which on they stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxquant.errors import TrainingError, nearest
from fxquant.graph.meta import path_matches
from fxquant.nn import QuantizationMixin
from fxquant.qat.optimizer_groups import parameter_groups
from fxquant.qat.switches import freeze_ranges
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


@dataclass(frozen=True)
class RangeRule:
    """What happens to ranges.

    Attributes:
        factor: of the learning rate of ranges; 0: they stay as they are.
        freeze_at: number of the step after which they stay as they are; None: never.
        weights: freeze the parameters that are rounded to these ranges with them, to train layer
            after layer.

    Raises:
        TrainingError: FXQ832, a value is out of range.
    """

    factor: float = 1.0
    freeze_at: int | None = None
    weights: bool = False

    def __post_init__(self) -> None:
        steps, factor = self.freeze_at, self.factor
        given: Any = factor
        number = isinstance(given, (int, float)) and not isinstance(given, bool)
        if not number or not 0.0 <= factor < math.inf:
            what = f"the factor of a rule is {factor!r}"
            raise TrainingError("FXQ832", what, fix="pass a finite number that is not negative")
        if steps is not None and (type(steps) is not int or steps < 0):
            what = f"freeze_at of a rule is {steps!r}"
            raise TrainingError("FXQ832", what, fix="pass a number of steps, or None")


class RangeSchedule:
    """Rules for the ranges of a simulation, by path.

    Make the groups of the optimizer with `parameter_groups`, and call `step` after each step of it.
    A schedule goes into a checkpoint by `state_dict()`.

    Args:
        model: a simulation's model, `sim.model`.
        rules: paths of quantizers, as `training_table` shows them, or globs -> what happens to
            them. Where several match, the last one counts.

    Raises:
        TrainingError: FXQ832, a path matches no quantizer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(4, 3)
        >>> scheme = "training_range_learning_with_tf_init"
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), x, scheme)
        >>> sim.compute_encodings([x])
        >>> rules = {"*": RangeRule(freeze_at=100), "*_stub.*": RangeRule(factor=0.1)}
        >>> schedule = RangeSchedule(sim.model, rules)
        >>> optimizer = torch.optim.Adam(schedule.parameter_groups(lr=1e-3))
        >>> schedule.step()
    """

    def __init__(self, model: nn.Module, rules: Mapping[str, RangeRule]) -> None:
        self._model, self._step = model, 0
        self._homes = _homes(model)
        self._rules: dict[str, RangeRule] = {}
        for pattern, rule in rules.items():
            if not isinstance(rule, RangeRule):
                what = f"the rule of {pattern!r} is {rule!r}"
                raise TrainingError("FXQ832", what, fix="pass a RangeRule")
            found = [path for path in self._homes if path_matches(pattern, path)]
            if not found:
                what = f"{pattern!r} matches no quantizer"
                fix = nearest(str(pattern), self._homes) or "look at fxquant.qat.training_table"
                raise TrainingError("FXQ832", what, fix=fix)
            self._rules |= dict.fromkeys(found, rule)
        self._apply()

    def parameter_groups(
        self, lr: float, range_lr: float = 1e-3, *, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Groups for an optimizer, see `parameter_groups`; ranges with factors are groups apart."""
        factors = {id(self._homes[path].quantizer): r.factor for path, r in self._rules.items()}
        return parameter_groups(
            self._model, lr, range_lr, weight_decay=weight_decay, factors=factors
        )

    def step(self) -> None:
        """Count a step of the optimizer, and freeze what is to be frozen after it."""
        self._step += 1
        self._apply()

    def frozen(self) -> list[str]:
        """Paths of the quantizers that were frozen so far."""
        return [path for path, rule in self._rules.items() if self._due(rule)]

    def state_dict(self) -> dict[str, int]:
        """How many steps were done."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there: what was frozen by then is frozen."""
        self._step = int(state["step"])
        self._apply()

    def _due(self, rule: RangeRule) -> bool:
        return rule.freeze_at is not None and self._step >= rule.freeze_at

    def _apply(self) -> None:
        for path in self.frozen():
            home = self._homes[path]
            freeze_ranges(home.quantizer)
            if self._rules[path].weights and home.parameter is not None:
                home.parameter.requires_grad = False
                home.parameter.grad = None


@dataclass(frozen=True)
class _Home:
    """A quantizer, and the parameter that it rounds."""

    quantizer: QuantizerBase
    parameter: nn.Parameter | None = None


def _homes(model: nn.Module) -> dict[str, _Home]:
    found: dict[str, _Home] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantizerBase):
            found.setdefault(path, _Home(module))
        elif isinstance(module, QuantizationMixin):
            for name, quantizer in module.param_quantizers.active():
                home = _Home(quantizer, module._parameters.get(name))
                found[f"{path}.param_quantizers.{name}"] = home
    return found
