"""One callback for everything that happens in a run: `on_event(name, values)`.

Names are dotted, the part that is at work first: "reconstruct.layer", "quantize.trial". Values are
numbers and texts. What counts steps has a value "step". The callbacks of progress that many calls
take besides are told the same steps; here they become events.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from fxquant.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Value = float | int | str


class OnEvent(Protocol):
    """What is called with the name of an event and its values."""

    def __call__(self, name: str, values: Mapping[str, Value], /) -> object:
        """Take note of an event."""


def require_event_callback(on_event: Any) -> None:
    """Refuse what cannot be called.

    Raises:
        ConfigError: FXQ772.
    """
    if on_event is not None and not callable(on_event):
        what = f"on_event is a {type(on_event).__name__}"
        raise ConfigError("FXQ772", what, fix="pass a function of (name, values)")


def emit(on_event: OnEvent | None, name: str, values: Mapping[str, Value | None]) -> None:
    """Report an event; values that are None or not finite are left out.

    Args:
        on_event: see `OnEvent`; None: nothing happens.
        name: of the event, such as "quantize.trial".
        values: by name.
    """
    if on_event is not None:
        on_event(name, {k: v for k, v in values.items() if v is not None and _is_reported(v)})


def counted(
    on_event: OnEvent | None, name: str, progress: Callable[[int, Any], None] | None
) -> Callable[[int, Any], None] | None:
    """A callback of (done, total) that is also an event `NAME.progress`.

    Args:
        on_event: see `OnEvent`; None: there are no events.
        name: of the part that is at work.
        progress: what the caller asked to be told; None: nothing.
    """
    require_event_callback(on_event)
    if on_event is None:
        return progress

    def tell(done: int, total: Any) -> None:
        if progress is not None:
            progress(done, total)
        emit(on_event, f"{name}.progress", {"step": done, "total": total})

    return tell


def _is_reported(value: Value) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
