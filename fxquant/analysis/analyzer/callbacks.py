"""Functions of a model as people hand them in: plain ones, and function and argument in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fxquant.calibrate import accepts
from fxquant.errors import ConfigError


class CallbackFunc:
    """A function of a model and one argument more, under AIMET's name.

    Args:
        func: called with (model, func_callback_args).
        func_callback_args: its second argument.

    Example:
        >>> CallbackFunc(lambda model, count: model * count, 3)(2)
        6
    """

    def __init__(self, func: Callable[..., Any], func_callback_args: Any = None) -> None:
        self.func, self.args = func, func_callback_args

    def __call__(self, model: Any) -> Any:
        """Call the function."""
        return self.func(model, self.args)


def of_model(callback: Any, name: str) -> Callable[[Any], Any]:
    """A callback as a function of a model alone.

    Args:
        callback: `callback(model)`; `callback(model, args)`, which is given None; or an object with
            `func` and `args`, such as `CallbackFunc`.
        name: of the argument, for errors.

    Raises:
        ConfigError: FXQ237, it is none of these.
    """
    if not callable(callback) and callable(getattr(callback, "func", None)):
        return CallbackFunc(callback.func, getattr(callback, "args", None))
    for rest in ((), (None,)) if callable(callback) else ():
        if accepts(callback, 1 + len(rest)):
            return lambda model: callback(model, *rest)
    what = f"{name} is a {type(callback).__name__}"
    if callable(callback):
        what = f"{name} takes neither (model) nor (model, args)"
    raise ConfigError(
        "FXQ237", what, fix="pass a function of the model, or CallbackFunc(func, args)"
    )
