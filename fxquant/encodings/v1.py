"""Version 1.0.0: lists of `{name, enc_type, dtype, bw, is_sym, scale, offset}`.

Offsets count from the smallest integer, signed or not. LPBQ has a scale a group, one small integer
a block, and offset and bits of the integers once these are multiplied in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fxquant.encodings.entry import Entry, malformed
from fxquant.encodings.fields import Fields, each_named, extras, float_type, numbers

VERSIONS = ("1.0.0",)
_KINDS = ("PER_TENSOR", "PER_CHANNEL", "PER_BLOCK", "LPBQ")


def write_entries(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """A section; a name that comes again is left out."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        found.setdefault(entry.name, write_entry(entry))
    return list(found.values())


def write_entry(entry: Entry) -> dict[str, Any]:
    """One tensor."""
    head = {"name": entry.name, "enc_type": entry.kind}
    if entry.float_type:
        scale = {} if entry.scale is None else {"scale": numbers(entry.scale)}
        return {**head, "dtype": "FLOAT", "bw": entry.bits, **scale, **extras(entry)}
    lpbq = entry.factors is not None
    written: dict[str, Any] = {
        **head,
        "dtype": "INT",
        "bw": entry.wide_bits if lpbq else entry.bits,
        "is_sym": bool(entry.symmetric),
        "scale": numbers(entry.scale),
        "offset": [-steps for steps in numbers(entry.steps)],
    }
    if lpbq:
        written["offset"] = [-(2 ** ((entry.wide_bits or entry.bits) - 1))] * len(written["scale"])
        written |= {"compressed_bw": entry.bits, "per_block_int_scale": numbers(entry.factors)}
    if entry.block is not None:
        written["block_size"] = entry.block
    return written | extras(entry)


def read_entries(section: Any, where: str) -> list[Entry]:
    """The entries of a section."""
    return [_entry(fields) for fields in each_named(section, where)]


def _entry(fields: Fields) -> Entry:
    """One tensor."""
    name = fields.name
    kind, bits = fields.text("enc_type", "PER_TENSOR"), fields.bits("bw")
    if kind not in _KINDS:
        raise malformed(name, f"enc_type {kind!r} is none of {', '.join(_KINDS)}")
    if fields.text("dtype", "INT").upper() == "FLOAT":
        scale = fields.scales("scale") if "scale" in fields else None
        return Entry(name, bits, scale, float_type=float_type(fields, bits))
    lpbq = kind == "LPBQ"
    scale, steps = fields.scales("scale"), -fields.integers("offset")
    if scale.shape != steps.shape:
        raise malformed(name, "scale and offset differ in length")
    if kind == "PER_TENSOR" and scale.size != 1:
        raise malformed(name, f"one scale was expected, not {scale.size}")
    narrow_bits = fields.bits("compressed_bw") if lpbq else bits
    factors = fields.integers("per_block_int_scale") if lpbq else None
    if factors is not None:
        steps = factors * 0 + 2 ** (narrow_bits - 1)
    return Entry(
        name, narrow_bits, scale.reshape(()) if kind == "PER_TENSOR" else scale,
        steps.reshape(()) if kind == "PER_TENSOR" else steps,
        symmetric=fields.flag("is_sym"), limits=fields.limits(), block=fields.integer("block_size"),
        factors=factors, wide_bits=bits if lpbq else None,
        # one list of scales says nothing of the axis: the tensor's own quantizer knows it
        axis=None,
    )  # fmt: skip
