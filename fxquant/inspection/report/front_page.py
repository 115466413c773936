"""The first page: how good, how large, how fast; what is not integer; the worst; what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fxquant.inspection.formats import without_names
from fxquant.inspection.operator_kernels import FLOAT, INTEGER

Entry = dict[str, Any]


def counts(entries: Iterable[Entry]) -> dict[str, int]:
    """Operators by what they compute with; inputs, stubs and the output are none."""
    found = {INTEGER: 0, FLOAT: 0}
    for entry in entries:
        if entry.get("k") in found:
            found[entry["k"]] += 1
    return found


def float_reasons(entries: Sequence[Entry], texts: Sequence[str]) -> list[Entry]:
    """What is computed in floating point, by operator and reason; the most frequent first."""
    names = {e["n"] for e in entries} - {e["o"] for e in entries}
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for i, entry in enumerate(entries):
        if entry.get("k") == FLOAT:
            reason = texts[entry["kw"]] if "kw" in entry else "the runtime says no reason"
            key = entry["o"], without_names(reason, names)
            groups.setdefault(key, []).append((i, reason))
    order = sorted(groups.items(), key=lambda found: -len(found[1]))
    return [
        {"o": o, "why": same if len(found) > 1 else found[0][1], "nodes": [i for i, _ in found]}
        for (o, same), found in order
    ]


def worst(entries: Sequence[Entry], count: int = 10) -> list[int]:
    """Places of the nodes whose own errors cause most noise: by share of it, then by decibels.

    Without measured errors: those that clip most, if data were seen; none otherwise.
    """
    measured = [(i, e["e"]) for i, e in enumerate(entries) if e.get("e", (None,))[0] is not None]
    measured.sort(key=lambda found: (-(found[1][2] or 0.0), found[1][0]))
    if measured:
        return [i for i, _ in measured[:count]]
    clipped = [
        (sum(e["h"]["cl"]), i) for i, e in enumerate(entries)
        if e.get("h", {}).get("cl") and "own" not in e["g"]  # what moves values has its producer's
    ]  # fmt: skip
    return [i for share, i in sorted(clipped, reverse=True)[:count] if share > 0]
