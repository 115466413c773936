"""`ModelValidator` with static methods, as AIMET has it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from fxquant import validate
from fxquant.aimet.model_preparer import recorded

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("fxquant")


class ModelValidator:
    """Checks of a model, run one after the other; `fxquant.validate_model` says more."""

    _checks: ClassVar[list[Callable[..., bool]]] = []

    @staticmethod
    def add_check(validation_check: Callable[..., bool]) -> None:
        """Add `check(model, model_input, **kwargs) -> bool` to those of all later calls."""
        ModelValidator._checks.append(validation_check)

    @staticmethod
    def validate_model(model: nn.Module, model_input: Any, **kwargs: Any) -> bool:
        """Whether a model follows the guidelines and passes the added checks; findings are logged.

        Args:
            model: the model, prepared or not.
            model_input: a tensor, a tuple of positional inputs or a dict of keyword inputs.
            kwargs: `layers_to_exclude`, modules that are not looked into; handed to added checks.
        """
        recorded(model, model_input)
        excluded = kwargs.get("layers_to_exclude") or ()
        report = validate.validate_model(model, model_input, modules_to_exclude=excluded)
        if report.findings:
            log.log(logging.INFO if report else logging.WARNING, "%s", report)
        passed = bool(report)
        for check in ModelValidator._checks:
            if not check(model, model_input, **kwargs):
                log.warning("the check %s fails", getattr(check, "__name__", check))
                passed = False
        return passed
