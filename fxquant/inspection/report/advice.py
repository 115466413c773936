"""What to do next: rules over what the report knows, each with the call that does it.

Every rule names what it saw, so that a reader can judge it. Rules are ordered: what makes all other
numbers meaningless comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Entry = dict[str, Any]

_CLIPPED = 0.01  # of the values of a tensor: more than any of the schemes leaves on purpose
_UNUSED = 0.25  # of the steps of a grid
_DOMINANT = 0.2  # of the noise at the outputs, by one node
_UNEVEN = 50.0  # largest to smallest channel under one step: the smallest has 2 or 3 of 127 steps
_GOOD = 30.0  # dB at the outputs, at which classifiers rarely change their choice
_MOST = 3  # nodes that one piece of advice names


@dataclass(frozen=True)
class Known:
    """What rules look at.

    Attributes:
        entries: the nodes.
        output_db: signal to noise ratio at the outputs; None where it was not measured.
        data: whether data were given.
        exported: whether an export report was given.
        proven: what it says.
        worst: places of the worst nodes.
        findings: what an audit of the calibration data found.
    """

    entries: Sequence[Entry]
    output_db: float | None
    data: bool
    exported: bool
    proven: bool
    worst: Sequence[int]
    findings: Sequence[Mapping[str, Any]] = ()


def advice(known: Known) -> list[Entry]:
    """What to do, the most urgent first: texts `what` and `why`, a call `code`, places `nodes`."""
    return [found for rule in _RULES for found in rule(known)]


def _uncalibrated(known: Known) -> Iterator[Entry]:
    missing = [i for i, e in enumerate(known.entries) if e.get("g", {}).get("un")]
    if missing:
        yield _advice(
            "Calibrate first", f"{len(missing)} tensors have no range yet: nothing can be computed",
            "sim.compute_encodings(batches)", missing,
        )  # fmt: skip


def _no_data(known: Known) -> Iterator[Entry]:
    if not known.data:
        yield _advice(
            "Measure errors", "without data this report shows structure and grids only",
            'sim.report("report.html", data=batches)', (),
        )  # fmt: skip


def _audited(known: Known) -> Iterator[Entry]:
    for found in known.findings:
        said = (found.get(key, "") for key in ("where", "message", "fix"))
        why = "; ".join(text for text in said if text)
        yield _advice(f"Calibration data: {found.get('kind', '')}", why, "", ())


def _not_proven(known: Known) -> Iterator[Entry]:
    if known.exported and not known.proven:
        yield _advice(
            "Prove the export", "the export was not compared with the runtime, or differs from it",
            'sim.export("out", "model")', (),
        )  # fmt: skip


def _dominant(known: Known) -> Iterator[Entry]:
    for i in known.worst[:_MOST]:
        entry = known.entries[i]
        share = (entry.get("e") or (None, None, None))[2] or 0.0
        if share < _DOMINANT:
            continue
        yield _advice(
            f"Give {entry['p']} more bits",
            f"it alone makes {share:.0%} of the noise at the outputs",
            f"sim.set_precision({entry['p']!r}, {_more(entry)}, data=batches)", (i,),
        )  # fmt: skip


def _more(entry: Entry) -> str:
    if entry.get("o") == "quantize":
        return "output=16"
    widest = min(w["b"] for w in entry["w"]) if entry.get("w") else 16
    return "param=8" if widest < 8 else "output=16"


def _clipping(known: Known) -> Iterator[Entry]:
    found = [i for i, e in enumerate(known.entries) if sum(e.get("h", {}).get("cl", ())) > _CLIPPED]
    if found:
        first = known.entries[found[0]]
        share = sum(first["h"]["cl"])
        yield _advice(
            "Look at what is clipped",
            f"{len(found)} tensors lose more than {_CLIPPED:.0%} of their values beyond the ends "
            f"of their grids ({first['p']}: {share:.1%}): the calibration may be of other data",
            "sim.compute_encodings(more_batches)", found,
        )  # fmt: skip


def _unused(known: Known) -> Iterator[Entry]:
    found = [i for i, e in enumerate(known.entries) if _is_unused(e)]
    if found:
        first = known.entries[found[0]]
        yield _advice(
            "Take outliers out of the ranges",
            f"in {len(found)} tensors 99.8% of the values use less than {_UNUSED:.0%} of the "
            f"steps ({first['p']}: {first['h']['us']:.1%})",
            'fxquant.QuantizationSimModel(model, x, "percentile")', found,
        )  # fmt: skip


def _is_unused(entry: Entry) -> bool:
    """Whether a tensor leaves steps of its own grid unused, and loses by it."""
    if entry.get("h", {}).get("us", 1.0) >= _UNUSED or "own" in entry["g"]:
        return False
    own = (entry.get("e") or (None,))[0]
    return own is not None and own < _GOOD


def _uneven(known: Known) -> Iterator[Entry]:
    found = [
        i for i, e in enumerate(known.entries)
        for w in e.get("w", ()) if w.get("r", 1.0) > _UNEVEN and not w["g"].get("ch")
    ]  # fmt: skip
    if found:
        yield _advice(
            "Equalize channels",
            f"{len(found)} weights have one step for channels whose ranges differ more than "
            f"{_UNEVEN:.0f}-fold",
            "fxquant.equalize_model(model, dummy_input=x)", found,
        )  # fmt: skip


def _noisy(known: Known) -> Iterator[Entry]:
    if known.output_db is not None and known.output_db < _GOOD:
        yield _advice(
            "Let techniques try",
            f"the outputs keep {known.output_db:.1f} dB; below {_GOOD:.0f} dB choices change",
            "fxquant.quantize(model, batches, evaluate=..., accuracy_drop=...)", (),
        )  # fmt: skip


def _not_exported(known: Known) -> Iterator[Entry]:
    if not known.exported:
        yield _advice(
            "Export and prove", "no export report was given: kernels and parity are not known",
            'sim.report("report.html", export=sim.export("out", "model"))', (),
        )  # fmt: skip


_RULES: tuple[Callable[[Known], Iterator[Entry]], ...] = (
    _uncalibrated, _no_data, _audited, _not_proven, _dominant, _clipping, _unused, _uneven, _noisy,
    _not_exported,
)  # fmt: skip


def _advice(what: str, why: str, code: str, nodes: Sequence[int]) -> Entry:
    return {"what": what, "why": why, "code": code, "nodes": [*nodes][:12], "count": len(nodes)}
