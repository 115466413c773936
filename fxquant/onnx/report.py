"""The report of a proof: what onnxruntime computes compared with what the simulation computes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fxquant.errors import ParityError
from fxquant.onnx.default_kernels import KernelRun
from fxquant.onnx.integer.saturation import Saturation, describe

_WORST = 12  # rows a printed report shows


@dataclass(frozen=True)
class TensorRow:
    """One quantized tensor at one optimization level, computed from the simulation's own inputs.

    Attributes:
        node: name of the fx node that makes the tensor.
        module: path of its module.
        source: the user's `file:line`, or an empty text.
        level: "off" or "all".
        elements: how many elements were compared.
        exact: how many are equal.
        tie: how many are one step apart where the simulation's value lies at a rounding boundary.
        drift: how many are one step apart further away from it.
        defect: how many are two steps or more apart.
        unexplained: defects, and drift beyond what a float island may do.
        max_steps: largest difference in steps.
        distance: largest distance of a one-step difference from the boundary, in steps, up to 0.5.
        tolerance: distance within which it is a tie, in steps.
        noise: how many are further apart, yet both sides are within float32 rounding of the
            float64 value: long sums, and sums that cancel.
        noise_steps: largest difference among those, in steps.
    """

    node: str
    module: str
    source: str
    level: str
    elements: int
    exact: int
    tie: int
    drift: int
    defect: int
    unexplained: int
    max_steps: int
    distance: float
    tolerance: float
    noise: int = 0
    noise_steps: int = 0


@dataclass(frozen=True)
class ChoiceRow:
    """Places that argmax, topk or sort chose, at one optimization level, from the same integers.

    Attributes:
        node: name of the fx node.
        level: "off" or "all".
        elements: how many places were compared.
        other: how many of them the runtime chose otherwise.
        lost: largest difference of the simulation's scores at its place and the runtime's.
        allowed: difference of scores within which they tie.
    """

    node: str
    level: str
    elements: int
    other: int
    lost: float
    allowed: float

    @property
    def proven(self) -> bool:
        """Whether every other choice is a tie."""
        return self.lost <= self.allowed


@dataclass(frozen=True)
class OutputRow:
    """One output of the model at one optimization level.

    Attributes:
        name: name of the graph output.
        level: "off" or "all".
        forced: whether the last quantized tensors were the simulation's (else the whole model ran).
        peak: largest magnitude in the simulation.
        difference: largest absolute difference.
        relative: `difference / peak`.
        allowed: relative difference that passes; None where the difference is only shown.
        labels: share of rows whose largest element is at the same place, for outputs [N, C].
    """

    name: str
    level: str
    forced: bool
    peak: float
    difference: float
    relative: float
    allowed: float | None
    labels: float | None

    @property
    def proven(self) -> bool:
        """Whether the difference is within what is allowed."""
        return self.allowed is None or self.relative <= self.allowed


@dataclass(frozen=True)
class LevelInfo:
    """A whole run at one optimization level.

    Attributes:
        level: "off" or "all".
        equal_share: share of equal elements over every quantized tensor, nothing forced.
        max_steps: largest difference anywhere in that run, in steps.
    """

    level: str
    equal_share: float
    max_steps: int


@dataclass(frozen=True)
class OperatorRow:
    """Where one operator of the exported graph runs.

    Attributes:
        name: name of the ONNX node: the module path.
        operator: its type, e.g. "Conv".
        kernel: what onnxruntime runs, e.g. "QLinearConv".
        integer: whether that computes on integers.
        reason: why it does not; empty for integer kernels.
        macs: multiply-accumulates for one sample of the recorded shapes.
    """

    name: str
    operator: str
    kernel: str
    integer: bool
    reason: str
    macs: int


@dataclass(frozen=True)
class ParityReport:
    """What the proof found. It is true when the export is proven.

    Attributes:
        proven: whether onnxruntime and the simulation agree.
        max_steps: largest difference over all quantized tensors at both levels, each computed from
            the simulation's own inputs, in steps.
        tensors: one row a quantized tensor and level.
        outputs: one row a model output, level and kind of run.
        choices: one row an argmax, topk or sort and level.
        levels: the two whole runs.
        shipped: optimization levels at which the file as it is written was opened and run.
        operators: where each operator runs.
        skipped: quantized tensors that could not be compared.
        notes: what else is to be known about the file: operators that torch's exporter wrote, why
            the batch is not dynamic.
        risks: kernels whose sums can saturate on x86 CPUs without VNNI.
        cpu: the CPU that it was proven on, and whether its integer products are exact.
        kernels: what default kernels make of the file, where some CPUs do not compute exactly.
        seconds: duration of the proof.
        runtime: name and version of what it was proven against; empty without a proof.
    """

    proven: bool
    max_steps: int = 0
    tensors: tuple[TensorRow, ...] = ()
    outputs: tuple[OutputRow, ...] = ()
    choices: tuple[ChoiceRow, ...] = ()
    levels: tuple[LevelInfo, ...] = ()
    shipped: tuple[str, ...] = ()
    operators: tuple[OperatorRow, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    risks: tuple[Saturation, ...] = ()
    cpu: str = ""
    kernels: tuple[KernelRun, ...] = ()
    seconds: float = 0.0
    runtime: str = ""

    def __bool__(self) -> bool:
        return self.proven

    @property
    def exact_share(self) -> float:
        """Share of equal elements over all rows of `tensors`."""
        total = sum(row.elements for row in self.tensors)
        return sum(row.exact for row in self.tensors) / total if total else 1.0

    @property
    def equal_share(self) -> dict[str, float]:
        """Share of equal elements of a whole run, by level."""
        return {info.level: info.equal_share for info in self.levels}

    @property
    def label_agreement(self) -> float | None:
        """Lowest share of equal labels of a whole run; None when no output looks like labels."""
        found = [row.labels for row in self.outputs if row.labels is not None and not row.forced]
        return min(found) if found else None

    @property
    def integer_operators(self) -> tuple[OperatorRow, ...]:
        """Operators that run in integer kernels."""
        return tuple(row for row in self.operators if row.integer)

    @property
    def float_operators(self) -> tuple[OperatorRow, ...]:
        """Operators that run in floating point, with reasons."""
        return tuple(row for row in self.operators if not row.integer)

    @property
    def integer_macs_share(self) -> float:
        """Share of all multiply-accumulates that integer kernels do; 1 where there are none."""
        total = sum(row.macs for row in self.operators)
        return sum(row.macs for row in self.integer_operators) / total if total else 1.0

    def raise_unless_proven(self) -> None:
        """Raise what a failed export raises.

        Raises:
            ParityError: FXQ560 a quantized tensor, FXQ561 an output, FXQ569 a choice differs.
        """
        if self.proven:
            return
        bad = sorted((r for r in self.tensors if r.unexplained), key=_severity)
        if bad:
            raise ParityError("FXQ560", _differing(bad), at=_place(bad[0]), fix=_FIX)
        chosen = [row for row in self.choices if not row.proven]
        if chosen:
            raise ParityError("FXQ569", _choices_differ(chosen), at=chosen[0].node, fix=_FIX)
        wrong = [row for row in self.outputs if not row.proven]
        if wrong:
            raise ParityError("FXQ561", _outputs_differ(wrong), fix=_FIX)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        plain = dataclasses.asdict(self)
        plain |= {
            "exact_share": self.exact_share,
            "equal_share": self.equal_share,
            "label_agreement": self.label_agreement,
            "integer_macs_share": self.integer_macs_share,
        }
        return plain

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=1, default=str)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


_FIX = "export with prove=False to look at the file, and report it: fxquant or onnxruntime is wrong"


def _severity(row: TensorRow) -> tuple[int, int, float]:
    return (-row.max_steps, -row.unexplained, -row.distance)


def _place(row: TensorRow) -> str:
    text = f"{row.node} ({row.module})" if row.module else row.node
    return f"{text}, {row.source}" if row.source else text


def _differing(rows: list[TensorRow]) -> str:
    count = len({r.node for r in rows})
    head = f"{count} quantized tensor(s) differ from the simulation by more than rounding:"
    worst = [
        f"    {_place(r)}: {r.unexplained} of {r.elements} elements at level {r.level}, "
        f"up to {r.max_steps} step(s)"
        for r in rows[:5]
    ]
    return "\n".join([head, *worst])


def _outputs_differ(rows: list[OutputRow]) -> str:
    parts = [
        f"output {r.name!r} differs by {r.relative:.1e} of its peak at level {r.level} "
        f"({r.allowed:.1e} is allowed)"
        for r in rows[:5]
    ]
    return "; ".join(parts)


def _choices_differ(rows: list[ChoiceRow]) -> str:
    parts = [
        f"{r.node} chooses {r.other} of {r.elements} otherwise at level {r.level}, by scores up to "
        f"{r.lost:.1e} apart ({r.allowed:.1e} is a tie)"
        for r in rows[:5]
    ]
    return "; ".join(parts)


def _lines(report: ParityReport) -> Iterable[str]:
    yield from _proof_lines(report)
    yield from (f"note: {note}" for note in report.notes)


def _proof_lines(report: ParityReport) -> Iterable[str]:
    if not report.runtime:
        yield "not proven: the export was not compared with a runtime"
        return
    verdict = "proven" if report.proven else "NOT PROVEN"
    yield f"{verdict} against {report.runtime} in {report.seconds:.1f} s on {report.cpu}"
    if report.shipped:
        yield f"the file as it is written: opened and run at levels {', '.join(report.shipped)}"
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
    differing = sorted((r for r in report.tensors if r.exact < r.elements), key=_severity)
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
