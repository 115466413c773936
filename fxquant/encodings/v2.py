"""Versions 2.0.0 and 2.1.0: the words of ONNX QuantizeLinear, one list for all tensors.

`{name, output_dtype, y_scale, y_zero_point, axis, block_size}`: a number per tensor, a list per
channel, nested lists per block; zero points are left out where all are zero. 16-bit floats are left
out altogether. LPBQ is `per_block_int_scale` and `per_channel_float_scale` in 2.0.0, and in 2.1.0
`y_scale: {x: small integers, x_scale: scales of the groups, axis}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from fxquant.encodings.entry import FLOATS, Array, Entry, malformed
from fxquant.encodings.fields import Fields, each_named, extras, narrow, nested

VERSIONS = ("2.0.0", "2.1.0")
_OMITTED = ("float16", "bfloat16")


def write_entries(entries: Iterable[Entry], version: str) -> list[dict[str, Any]]:
    """The list of tensors; a name that comes again is left out."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.float_type not in _OMITTED and entry.name not in found:
            found[entry.name] = write_entry(entry, version)
    return list(found.values())


def write_entry(entry: Entry, version: str) -> dict[str, Any]:
    """One tensor."""
    if entry.scale is None:
        raise malformed(entry.name, "it has no scale")
    written: dict[str, Any] = {"name": entry.name}
    if entry.float_type:
        written["output_dtype"] = entry.float_type
    else:
        written["output_dtype"] = f"{'' if entry.signed else 'u'}int{entry.bits}"
    written |= _scales(entry, version)
    if entry.steps is not None and entry.factors is None:
        zero = entry.steps + _smallest(entry)
        if zero.any():
            written["y_zero_point"] = _shaped(entry, zero)
    if entry.axis is not None:
        written["axis"] = entry.axis
    if entry.block is not None:
        written["block_size"] = entry.block
    if entry.limits is not None and narrow(entry.limits, entry.bits):
        written |= {"qmin": entry.limits[0], "qmax": entry.limits[1]}
    return written | {k: v for k, v in extras(entry).items() if k != "float_type"}


def _scales(entry: Entry, version: str) -> dict[str, Any]:
    if entry.factors is None or entry.scale is None:
        return {"y_scale": _shaped(entry, entry.scale)}
    factors, groups = nested(entry.factors), nested(entry.scale)
    if version == "2.0.0":
        return {"per_block_int_scale": factors, "per_channel_float_scale": groups}
    return {"y_scale": {"x": factors, "x_scale": groups, "axis": entry.axis}}


def _shaped(entry: Entry, numbers: Array | None) -> Any:
    """A number per tensor, a list per channel, nested lists per block."""
    if numbers is None or entry.block is not None or not numbers.ndim:
        return None if numbers is None else nested(numbers)
    return nested(numbers.reshape(-1))


def _smallest(entry: Entry) -> int:
    if entry.limits is not None:
        return entry.limits[0]
    return -(2 ** (entry.bits - 1)) if entry.signed else 0


def read_entries(section: Any, where: str) -> list[Entry]:
    """The entries of the list."""
    return [_entry(fields) for fields in each_named(section, where)]


def _entry(fields: Fields) -> Entry:
    """One tensor."""
    name = fields.name
    dtype = fields.text("output_dtype").lower()
    axis, block = fields.integer("axis"), fields.integer("block_size")
    if dtype in FLOATS:
        bits = 16 if dtype in _OMITTED else 8
        scale = fields.scales("y_scale") if "y_scale" in fields else None
        return Entry(name, bits, scale, float_type=dtype, axis=axis)
    match = re.fullmatch(r"(u?)int(\d{1,2})", dtype)
    if match is None or int(match[2]) not in range(2, 33):
        raise malformed(name, f"output_dtype {dtype!r} is no integer and no 8-bit float type")
    entry = Entry(name, int(match[2]), signed=not match[1], limits=fields.limits(),
                  axis=axis, block=block)  # fmt: skip
    return _with_scales(entry, fields)


def _with_scales(entry: Entry, fields: Fields) -> Entry:
    inner = fields.given.get("y_scale")
    pair = None
    if isinstance(inner, dict):
        parts = Fields(entry.name, inner)
        pair = parts.integers("x"), parts.scales("x_scale")
    elif "per_block_int_scale" in fields:
        pair = fields.integers("per_block_int_scale"), fields.scales("per_channel_float_scale")
    if pair is not None:
        middle = np.full(pair[0].shape, -_smallest(entry), np.int64)
        return replace(entry, scale=pair[1], factors=pair[0], steps=middle, symmetric=True)
    scale = fields.scales("y_scale")
    zero = fields.integers("y_zero_point") if "y_zero_point" in fields else np.zeros(scale.shape)
    if zero.shape != scale.shape:
        raise malformed(entry.name, "y_scale and y_zero_point differ in shape")
    return replace(entry, scale=scale, steps=(zero - _smallest(entry)).astype(np.int64))
