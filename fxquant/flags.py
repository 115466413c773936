"""Arguments that are switches: a text or a number in their place would count as True."""

from __future__ import annotations

from typing import Any

from fxquant.errors import ConfigError


def require_flags(**flags: Any) -> None:
    """Refuse what is neither True nor False.

    Args:
        flags: values by the names of the arguments.

    Raises:
        ConfigError: FXQ236.

    Example:
        >>> require_flags(prove=True)
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            what = f"{name}={value!r} is neither True nor False"
            raise ConfigError("FXQ236", what, fix=f"write {name}=True or {name}=False")
