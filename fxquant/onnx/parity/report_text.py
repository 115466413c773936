"""The report of a proof as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fxquant.io.text_tables import table
from fxquant.onnx.integer.saturation import describe

if TYPE_CHECKING:
    from fxquant.onnx.parity.report import ParityReport, TensorRow
    from fxquant.onnx.parity.target_coverage import TargetCoverage

_WORST = 12  # rows a printed report shows
_LEGEND = (
    "  tie: elements one step apart where the simulation's value lies between two steps; "
    "drift: one step apart elsewhere; defect: two steps or more; "
    "level: onnxruntime's optimizations, off or all"
)


def lines(report: ParityReport) -> Iterable[str]:
    """The report for people."""
    yield from _proof_lines(report)
    yield from (f"warning: {text}" for text in report.warnings)
    yield from _float_lines(report)
    yield from (f"note: {note}" for note in report.notes)


def _float_lines(report: ParityReport) -> Iterable[str]:
    """How far the simulation is from the float model."""
    for row in report.fidelity[:_WORST]:
        if row.sqnr_db is None:
            continue
        # all zeros, or no difference at all
        size = f"{row.sqnr_db:.1f} dB SQNR" if math.isfinite(row.sqnr_db) else "equal"
        text = f"against the float model, {report.samples} row(s): {row.name} keeps {size}"
        text += "" if row.cosine is None else f", cosine {row.cosine:.4f}"
        yield text + ("" if row.labels is None else f", labels agree {row.labels:.1%}")
    if report.compared_with_float:
        yield f"compared: {report.compared_with_float}"


def _proof_lines(report: ParityReport) -> Iterable[str]:
    if not report.runtime:
        yield "not proven: the export was not compared with a runtime"
        return
    verdict = "proven" if report.proven else "NOT PROVEN"
    yield f"{verdict} against {report.runtime} in {report.seconds:.1f} s on {report.cpu}"
    if report.shipped:
        yield f"the file as it is written: opened and run at levels {', '.join(report.shipped)}"
    if report.others:
        yield f"proven also on {', '.join(report.others)}"
    yield from _tensor_lines(report)
    yield from _run_lines(report)
    yield from _operator_lines(report)
    yield from map(str, report.kernels)
    if report.risks:
        yield describe(report.risks, exact=not any(run.measured for run in report.kernels))
    if report.skipped:
        yield f"not compared: {', '.join(report.skipped[:_WORST])}"


def _tensor_lines(report: ParityReport) -> Iterable[str]:
    names = {(row.node, row.module) for row in report.tensors}
    if not names:
        yield "no tensor is quantized: there was none to compare"
        return
    yield (
        f"each of {len(names)} quantized tensors from the simulation's inputs, both levels: "
        f"{report.exact_share:.4%} of elements equal, largest difference {report.max_steps} step(s)"
    )
    noisy = [row for row in report.tensors if row.noise]
    if noisy:
        yield (
            f"float32 rounding: {sum(row.noise for row in noisy)} elements of {len(noisy)} rows "
            f"differ by up to {max(row.noise_steps for row in noisy)} step(s), both sides as near "
            "to the float64 value as float32 sums are"
        )
    if report.choices:
        other, total = (sum(getattr(r, n) for r in report.choices) for n in ("other", "elements"))
        yield f"choices by argmax, topk and sort: {other} of {total} differ, by ties"
    differing = [r for r in report.tensors if r.exact < r.elements]
    if not differing:
        return
    worst = sorted(differing, key=lambda r: (-r.max_steps, -r.unexplained))[:_WORST]
    shown = {id(r) for r in worst}
    rows = [
        (r.module or r.node, r.level, r.elements, r.tie, r.drift, r.defect, r.max_steps, r.source)
        for r in differing if id(r) in shown
    ]  # fmt: skip
    heads = ("tensor", "level", "elements", "tie", "drift", "defect", "steps", "source")
    yield table(heads, rows, indent="  ")
    if len(differing) > _WORST:
        yield f"  ... and {len(differing) - _WORST} more rows with differences"
    yield _LEGEND


def _run_lines(report: ParityReport) -> Iterable[str]:
    for info in report.levels:
        rows = [r for r in report.outputs if r.level == info.level and not r.forced]
        drift = max((r.relative for r in rows), default=0.0)
        labels = [r.labels for r in rows if r.labels is not None]
        agree = f", labels agree {min(labels):.1%}" if labels else ""
        equal = (
            f"{info.equal_share:.3%} of quantized elements equal, up to {info.max_steps} step(s), "
        )
        yield (
            f"whole run, optimizations {info.level}: {equal if report.tensors else ''}"
            f"outputs within {drift:.1e} of their peak{agree}"
        )


def _target_lines(found: TargetCoverage) -> Iterable[str]:
    """What a chip computes on integers; the CPU's kernels, which come next, are not its own."""
    yield (
        f"on {found.name}, by its table: {found.integer} of {found.operators} operators on integers"
    )
    groups: dict[str, list[str]] = {}
    for operator, name in found.floating:
        groups.setdefault(operator, []).append(name)
    rows = [(len(names), operator, _some(names)) for operator, names in groups.items()]
    rows.sort(key=lambda row: (-row[0], row[1]))
    if rows:
        yield table(("float", "operator", "where"), rows[:_WORST], indent="  ")
    if len(rows) > _WORST:
        yield f"  ... and {len(rows) - _WORST} more operators"


def _operator_lines(report: ParityReport) -> Iterable[str]:
    chip = report.target is not None and not report.target.runtime
    if report.target is not None and chip:
        yield from _target_lines(report.target)
    if not report.operators:
        return
    count = f"{len(report.integer_operators)} of {len(report.operators)} operators"
    macs = any(row.macs for row in report.operators)
    share = (
        f"{report.integer_macs_share:.1%} of multiply-accumulates"
        if macs
        else "no multiply-accumulates"
    )
    if chip:
        yield (
            f"onnxruntime on this CPU, which ran the proof alone: {count} in integer kernels, "
            f"{share}; the others compute the same in floating point"
        )
        return
    yield f"integer kernels of onnxruntime on this CPU: {count}, {share}"
    groups: dict[tuple[str, str], list[str]] = {}
    for row in report.float_operators:
        groups.setdefault((row.operator, row.reason), []).append(row.name)
    rows = [
        (len(names), operator, reason, _some(names)) for (operator, reason), names in groups.items()
    ]
    rows.sort(key=lambda row: (-row[0], *row[1:]))
    if rows:
        yield table(("float", "operator", "reason", "where"), rows[:_WORST], indent="  ")
    if len(rows) > _WORST:
        yield f"  ... and {len(rows) - _WORST} more reasons"


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}, ..."


def severity(row: TensorRow) -> tuple[int, int, float]:
    """Sorts the worst rows first."""
    return (-row.max_steps, -row.unexplained, -row.distance)
