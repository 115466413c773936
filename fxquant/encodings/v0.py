"""Version 0.6.1: lists of `{min, max, scale, offset, ...}`, one for every channel or block.

Two flavours: keyed by the names of ONNX tensors, and keyed by module, where activations are
`{module: {"input": {"0": E}, "output": {"0": E}}}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fxquant.encodings.entry import Entry, malformed
from fxquant.encodings.fields import Fields, extras, float_type, numbers

VERSIONS = ("0.6.1",)
SIDES = ("input", "output")


# --- writing -------------------------------------------------------------------------------------


def write_entries(entries: Iterable[Entry]) -> dict[str, list[dict[str, Any]]]:
    """A section keyed by tensor."""
    return {entry.name: write_entry(entry) for entry in entries}


def write_by_module(entries: Iterable[Entry]) -> dict[str, dict[str, dict[str, Any]]]:
    """The activations of the flavour that is keyed by module."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in entries:
        module, side, index = entry.name.rsplit(".", 2)
        written = write_entry(entry)
        # a list where a grid has several ranges
        found.setdefault(module, {}).setdefault(side, {})[index] = (
            written[0] if len(written) == 1 else written
        )
    return found


def write_entry(entry: Entry) -> list[dict[str, Any]]:
    """One object for every range."""
    if entry.float_type:
        plain = {"bitwidth": entry.bits, "dtype": "float", **extras(entry)}
        return [{**plain, "scale": s} for s in numbers(entry.scale)] or [plain]
    low, high = entry.ends
    ranges = zip(*(numbers(x) for x in (low, high, entry.block_scale, entry.steps)), strict=True)
    shared = {
        "bitwidth": entry.bits,
        "dtype": "int",
        "is_symmetric": str(bool(entry.symmetric)),
        **extras(entry),
    }
    return [
        {"min": a, "max": b, "scale": scale, "offset": -steps, **shared}
        for a, b, scale, steps in ranges
    ]


# --- reading -------------------------------------------------------------------------------------


def is_by_module(section: dict[str, Any]) -> bool:
    """Whether the activations are keyed by module."""
    return any(isinstance(v, dict) and set(v) <= set(SIDES) for v in section.values())


def read_entries(section: Any, where: str) -> list[Entry]:
    """The entries of a section keyed by tensor."""
    if not isinstance(section, dict):
        raise malformed(where, "an object was expected")
    return [read_entry(name, given) for name, given in section.items()]


def read_by_module(section: dict[str, Any]) -> Iterator[Entry]:
    """The entries of activations keyed by module, named `module.input.0`."""
    for module, sides in section.items():
        for side, given in Fields(module, sides).given.items():
            if side not in SIDES:
                raise malformed(module, f"{side!r} is neither input nor output")
            for index, entry in Fields(f"{module}.{side}", given).given.items():
                yield read_entry(f"{module}.{side}.{index}", entry)


def read_entry(name: str, given: Any) -> Entry:
    """One tensor: an object, or a list with one object a range."""
    parts = [Fields(name, e) for e in (given if isinstance(given, list) else [given])]
    if not parts:
        raise malformed(name, "an empty list")
    first = parts[0]
    bits = first.bits("bitwidth")
    if first.text("dtype", "int").lower() == "float":
        scale = [float(p.scales("scale")) for p in parts if "scale" in p]
        kind = float_type(first, bits)
        return Entry(name, bits, _array(scale) if scale else None, float_type=kind)
    if any(p.bits("bitwidth") != bits or p.flag("is_symmetric") != first.flag("is_symmetric")
           for p in parts):  # fmt: skip
        raise malformed(name, "its ranges differ in bitwidth or symmetry")
    pairs = [_scale_and_steps(p, bits) for p in parts]
    if any(abs(steps) >= 2**63 for _, steps in pairs):
        raise malformed(name, "its zero lies far outside of the range")
    return Entry(
        name, bits, _array([s for s, _ in pairs]), np.array([o for _, o in pairs], np.int64),
        symmetric=first.flag("is_symmetric"), limits=first.limits(),
    )  # fmt: skip


def _scale_and_steps(fields: Fields, bits: int) -> tuple[float, int]:
    if fields.given.get("zero_point_shift"):
        raise malformed(fields.name, "grids with a shifted zero point are not supported")
    if "scale" in fields and "offset" in fields:
        scale, offset = fields.scales("scale"), fields.integers("offset")
        if scale.ndim or offset.ndim:
            raise malformed(fields.name, "scale and offset of a range are single numbers")
        _check_ends(fields, bits, float(scale), int(offset))
        return float(scale), -int(offset)
    if "min" not in fields or "max" not in fields:
        raise malformed(fields.name, "it has neither scale and offset nor min and max")
    low, high = fields.number("min"), fields.number("max")
    if not low < high:
        raise malformed(fields.name, f"there is no range from {low} to {high}")
    width = (high - low) / (2**bits - 1)
    return width, round(-low / width)


def _check_ends(fields: Fields, bits: int, scale: float, offset: int) -> None:
    """Both ways to tell a range tell the same, to a step: tools round the ends, or leave one out.

    Raises:
        CheckpointError: FXQ632, min or max is another number than scale and offset say.
    """
    limits = fields.limits()
    count = 2**bits - 1 if limits is None else limits[1] - limits[0]
    for key, steps in (("min", offset), ("max", offset + count)):
        if key in fields and not abs(fields.number(key) - steps * scale) <= 1.01 * scale:
            what = f"{key} is {fields.number(key)}, by scale and offset it is {steps * scale:g}"
            raise malformed(fields.name, what)


def _array(values: list[float]) -> Any:
    return np.array(values, np.float32) if len(values) > 1 else np.float32(values[0]).reshape(())
