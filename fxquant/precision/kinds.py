"""Precisions as people write them: a number of bits, or floating point."""

from __future__ import annotations

from typing import Any, Literal

from fxquant.errors import ConfigError

Precision = int | None
"""Bits of a grid of integers; None: floating point."""

Role = Literal["activation", "weight"]

_FLOATS = ("float", "float32", "fp32")
_NARROW = ("float16", "fp16", "bfloat16", "bf16")


def precision_of(given: Any, what: str) -> Precision:
    """A precision from a number of bits, a text such as "int8", or "float".

    Args:
        given: what the user wrote.
        what: what it is for, in the error.

    Raises:
        ConfigError: FXQ263, it is none.

    Example:
        >>> precision_of(16, "activation"), precision_of("int4", "param")
        (16, 4)
        >>> precision_of("float", "activation") is None
        True
    """
    if isinstance(given, str):
        word = given.strip().lower()
        if word in _FLOATS:
            return None
        if word.removeprefix("u").startswith("int") and word.rpartition("int")[2].isdigit():
            given = int(word.rpartition("int")[2])
    if type(given) is int and 2 <= given <= 32:
        return given
    fix = 'pass 2 to 32 bits, a text such as "int8", or "float"'
    if isinstance(given, str) and given.strip().lower() in _NARROW:
        fix = "sim.set_activation_quantizers_to_float(...) rounds to a narrow floating-point format"
    raise ConfigError("FXQ263", f"{what}={given!r} is no precision", fix=fix)


def shown(precision: Precision) -> str:
    """A precision for people."""
    return "float" if precision is None else f"{precision} bits"
