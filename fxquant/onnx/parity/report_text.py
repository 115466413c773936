"""The report of a proof as text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fxquant.onnx.integer.saturation import describe

if TYPE_CHECKING:
    from fxquant.onnx.parity.report import ParityReport, TensorRow

_WORST = 12  # rows a printed report shows


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
    differing = sorted((r for r in report.tensors if r.exact < r.elements), key=severity)
    if not differing:
        return
    table: list[tuple[str, ...]] = [
        ("tensor", "level", "elements", "tie", "drift", "defect", "steps", "source")
    ]
    table += [
        (r.module or r.node, r.level, str(r.elements), str(r.tie), str(r.drift), str(r.defect),
         str(r.max_steps), r.source)
        for r in differing[:_WORST]
    ]  # fmt: skip
    yield from _table(table)
    if len(differing) > _WORST:
        yield f"  ... and {len(differing) - _WORST} more rows with differences"


def _run_lines(report: ParityReport) -> Iterable[str]:
    for info in report.levels:
        rows = [r for r in report.outputs if r.level == info.level and not r.forced]
        drift = max((r.relative for r in rows), default=0.0)
        labels = [r.labels for r in rows if r.labels is not None]
        agree = f", labels agree {min(labels):.1%}" if labels else ""
        yield (
            f"whole run, optimizations {info.level}: {info.equal_share:.3%} of quantized elements "
            f"equal, up to {info.max_steps} step(s), "
            f"outputs within {drift:.1e} of their peak{agree}"
        )


def _operator_lines(report: ParityReport) -> Iterable[str]:
    if not report.operators:
        return
    yield (
        f"integer kernels: {len(report.integer_operators)} of {len(report.operators)} operators, "
        f"{report.integer_macs_share:.1%} of multiply-accumulates"
    )
    groups: dict[tuple[str, str], list[str]] = {}
    for row in report.float_operators:
        groups.setdefault((row.operator, row.reason), []).append(row.name)
    rows = [
        (str(len(names)), operator, reason, names[0] if len(names) == 1 else f"{names[0]}, ...")
        for (operator, reason), names in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    if rows:
        yield from _table([("float", "operator", "reason", "where"), *rows[:_WORST]])
    if len(rows) > _WORST:
        yield f"  ... and {len(rows) - _WORST} more reasons"


def _table(rows: list[tuple[str, ...]]) -> Iterable[str]:
    if not rows:
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield ("  " + "  ".join(cells)).rstrip()


def severity(row: TensorRow) -> tuple[int, int, float]:
    """Sorts the worst rows first."""
    return (-row.max_steps, -row.unexplained, -row.distance)
