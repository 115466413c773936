"""Reading the fields of an entry with their types checked, and writing them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeGuard

import numpy as np

from fxquant.encodings.entry import FLOATS, Array, Entry, malformed

_BITS = range(2, 33)
_LARGEST = 2**32


class Fields:
    """One JSON object; asking for a field checks its type.

    Args:
        name: tensor, for errors.
        given: the JSON object.
    """

    def __init__(self, name: str, given: Any) -> None:
        if not isinstance(given, dict):
            raise malformed(name, f"an object was expected, not {type(given).__name__}")
        self.name = name
        self.given = given

    def __contains__(self, key: str) -> bool:
        return key in self.given

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.given.get(key, default)
        if not isinstance(value, str):
            raise malformed(self.name, f"{key} is {value!r}, not a text")
        return value

    def integer(self, key: str) -> int | None:
        """A whole number, or None where the field is missing."""
        value = self.given.get(key)
        if value is None:
            return None
        if not _is_number(value) or not abs(value) < 2**63 or value != int(value):
            raise malformed(self.name, f"{key} is {value!r}, not a whole number")
        return int(value)

    def number(self, key: str) -> float:
        """A finite number."""
        value = self.given.get(key)
        if not _is_number(value) or not math.isfinite(value):
            raise malformed(self.name, f"{key} is {value!r}, not a finite number")
        return float(value)

    def bits(self, key: str) -> int:
        """A bitwidth."""
        value = self.integer(key)
        if value is None or value not in _BITS:
            raise malformed(self.name, f"{key} is {value}, not 2 to 32")
        return value

    def flag(self, key: str) -> bool | None:
        """A boolean, or the texts "True" and "False"; None where the field is missing."""
        value = self.given.get(key)
        known = {"True": True, "False": False}
        value = known.get(value, value) if isinstance(value, str) else value
        if value is not None and not isinstance(value, bool):
            raise malformed(self.name, f"{key} is {value!r}, not true or false")
        return value

    def scales(self, key: str) -> Array:
        """Positive finite numbers as float32, in their nesting."""
        with np.errstate(over="ignore"):  # what is too large is refused as infinite
            found = self._numbers(key).astype(np.float32)
        if not found.size or not np.isfinite(found).all() or (found <= 0).any():
            raise malformed(self.name, f"{key} holds numbers that are not positive and finite")
        return found

    def integers(self, key: str) -> Array:
        """Whole numbers as int64, in their nesting."""
        found = self._numbers(key)
        if not np.isfinite(found).all() or (found != np.round(found)).any():
            raise malformed(self.name, f"{key} holds numbers that are not whole")
        if (np.abs(found) > _LARGEST).any():
            raise malformed(self.name, f"{key} holds numbers beyond 32 bits")
        return found.astype(np.int64)

    def limits(self) -> tuple[int, int] | None:
        """Smallest and largest integer, where the file names them."""
        low, high = self.integer("qmin"), self.integer("qmax")
        if low is None or high is None:
            return None
        if low >= high or max(-low, high) > _LARGEST:
            raise malformed(self.name, f"there are no integers from qmin {low} to qmax {high}")
        return (low, high)

    def _numbers(self, key: str) -> Array:
        try:
            given = self.given[key]
            if not _are_numbers(given):
                raise malformed(self.name, f"{key} is no (nested) list of numbers")
            found = np.array(given, dtype=np.float64)
        except KeyError:
            raise malformed(self.name, f"{key} is missing") from None
        except (TypeError, ValueError, OverflowError) as error:
            raise malformed(self.name, f"{key} is no (nested) list of numbers") from error
        return found


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number; True and False are none."""
    # integers of any length are JSON; those that no float holds say nothing about a grid
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _are_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_are_numbers, value))
    return _is_number(value)


def each_named(section: Any, where: str) -> Iterator[Fields]:
    """The fields of every entry of a list, each with its name among them."""
    if not isinstance(section, list):
        raise malformed(where, "a list was expected")
    for given in section:
        name = given.get("name") if isinstance(given, dict) else None
        if not isinstance(name, str):
            raise malformed("?", "it has no name")
        yield Fields(name, given)


def float_type(fields: Fields, bits: int) -> str:
    """The narrow floating-point format of an entry; without a name 16 bits are float16."""
    found = fields.text(
        "float_type", {16: "float16", 8: "float8e4m3fn", 32: "float32"}.get(bits, "")
    )
    if found not in FLOATS and found != "float32":
        raise malformed(fields.name, f"there is no float type {found or bits!r}")
    return found


def extras(entry: Entry) -> dict[str, Any]:
    """Fields beyond the version's own, where the grid could not be told without them."""
    found: dict[str, Any] = {}
    if entry.limits is not None and not narrow(entry.limits, entry.bits):
        found |= {"qmin": entry.limits[0], "qmax": entry.limits[1]}
    if entry.float_type not in ("", "float16"):
        found["float_type"] = entry.float_type
    return found


def narrow(limits: tuple[int, int], bits: int) -> bool:
    """Whether the grid is `-(2 ** (bits - 1) - 1) .. 2 ** (bits - 1) - 1`: its zero point tells."""
    half = 2 ** (bits - 1) - 1
    return limits == (-half, half)


def numbers(x: Array | None) -> list[Any]:
    """Plain numbers, flat; float32 is exact as a double and in its shortest decimal form."""
    return [] if x is None else list(x.reshape(-1).tolist())


def nested(x: Array) -> Any:
    """Plain numbers in the array's nesting."""
    return x.tolist()
