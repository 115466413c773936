"""Of results that were handed in, what the page shows: reports of large networks stay small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_DIFFERING = 20  # rows of tensors that are not equal

_PROOF = (
    "proven", "runtime", "cpu", "max_steps", "exact_share", "integer_macs_share", "shipped",
    "label_agreement", "fidelity", "kernels", "warnings", "notes", "samples",
)  # fmt: skip


def proof(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The report of an export: kernels in groups, and only tensors that differ."""
    if report is None:
        return None
    made = {key: report[key] for key in _PROOF if key in report}
    groups: dict[tuple[Any, ...], list[str]] = {}
    for row in rows(report, "operators"):
        key = tuple(row.get(k) for k in ("operator", "kernel", "integer", "reason"))
        groups.setdefault(key, []).append(str(row.get("name", "")))
    order = sorted(groups.items(), key=lambda found: -len(found[1]))
    made["operators"] = [[len(names), *key, names[0]] for key, names in order]
    differing = [r for r in rows(report, "tensors") if r.get("exact") != r.get("elements")]
    differing.sort(key=lambda r: (-(r.get("max_steps") or 0), -(r.get("unexplained") or 0)))
    keys = ("module", "level", "elements", "tie", "drift", "defect", "max_steps")
    made["tensors"] = [
        [r.get("module") or r.get("node"), *(r.get(k) for k in keys[1:])]
        for r in differing[:_DIFFERING]
    ]  # fmt: skip
    made["differing"], made["risks"] = len(differing), len(rows(report, "risks"))
    return made


def search(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A search for mixed precision: of every choice its place in the plot and a text."""
    if result is None:
        return None
    made = {key: result.get(key) for key in ("sensitivities", "cost", "measure")}
    for name in ("points", "pareto"):
        made[name] = [_point(p) for p in rows(result, name)]
    chosen = result.get("chosen")
    made["chosen"] = _point(chosen) if isinstance(chosen, Mapping) else None
    return made


def _point(point: Mapping[str, Any]) -> dict[str, Any]:
    label = point.get("label")
    if not label:
        counts = Counter((point.get("options") or {}).values())
        label = ", ".join(f"{n} x {option}" for option, n in sorted(counts.items()))
    return {"cost": point.get("cost"), "accuracy": point.get("accuracy"), "label": label}


def times(profile: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A profile without its rows, which the nodes have."""
    return None if profile is None else {k: v for k, v in profile.items() if k != "rows"}


def sensitivities(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An analysis without the errors of nodes, which the nodes have."""
    if result is None:
        return None
    return {key: result.get(key) for key in ("sensitivity", "enabled", "disabled")}


def rows(found: Mapping[str, Any] | None, name: str) -> Sequence[Mapping[str, Any]]:
    """A list of objects in a result; empty where there is none."""
    given = (found or {}).get(name)
    return [r for r in given if isinstance(r, Mapping)] if isinstance(given, list | tuple) else []
