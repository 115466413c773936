"""What differs between two encodings files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from fxquant.encodings.entry import Entry, same
from fxquant.encodings.file import EncodingsFile


@dataclass(frozen=True)
class Difference:
    """One tensor that differs.

    Attributes:
        name: the tensor.
        what: how it differs, in words.
    """

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"

    def to_dict(self) -> dict[str, str]:
        """As plain data."""
        return asdict(self)


def diff(a: EncodingsFile, b: EncodingsFile) -> tuple[Difference, ...]:
    """Tensors whose grids differ, in the order of the first file; versions may differ."""
    first, second = _by_name(a.entries), _by_name(b.entries)
    found = []
    for name, entry in first.items():
        what = "only in the first" if name not in second else compare(entry, second[name])
        if what:
            found.append(Difference(name, what))
    return (*found, *(Difference(n, "only in the second") for n in second if n not in first))


def compare(a: Entry, b: Entry) -> str:
    """How two entries differ, or nothing; what a version cannot say does not count."""
    found = []
    if a.float_type != b.float_type:
        return f"{a.float_type or 'integers'}, then {b.float_type or 'integers'}"
    if a.bits != b.bits:
        found.append(f"{a.bits} bits, then {b.bits} bits")
    for word in ("symmetric", "signed"):
        mine, theirs = getattr(a, word), getattr(b, word)
        if None not in (mine, theirs) and mine != theirs:
            found.append(word if mine else f"not {word}")
            found[-1] += f", then {word if theirs else f'not {word}'}"
    return "; ".join([*found, *_numbers(a, b)])


def _numbers(a: Entry, b: Entry) -> Iterable[str]:
    mine, theirs = a.block_scale, b.block_scale
    if mine is None or theirs is None:
        if mine is not theirs:
            yield "a scale, then none" if theirs is None else "no scale, then one"
        return
    if mine.size != theirs.size:
        yield f"{mine.size} range(s), then {theirs.size}"
        return
    if not same(mine, theirs):
        ratio = theirs.reshape(-1).astype(np.float64) / mine.reshape(-1)
        worst = float(ratio[np.argmax(np.abs(np.log(ratio)))])
        count = int((ratio != 1.0).sum())
        yield f"{count} of {mine.size} scales, up to {100 * (worst - 1):+.3g} %"
    if not same(a.steps, b.steps):
        yield "zero points"


def _by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}
