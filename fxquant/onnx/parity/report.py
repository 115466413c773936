"""The report of a proof: what onnxruntime computes compared with what the simulation computes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxquant.errors import ParityError
from fxquant.onnx.integer.saturation import Saturation
from fxquant.onnx.ort.coverage import OperatorRow
from fxquant.onnx.parity.default_kernels import KernelRun
from fxquant.onnx.parity.float_comparison import Agreement
from fxquant.onnx.parity.report_text import lines, severity
from fxquant.onnx.parity.target_coverage import TargetCoverage


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
class ParityReport:
    """What the proof found. It is true when the export is proven.

    Attributes:
        proven: whether onnxruntime and the simulation agree.
        max_steps: largest difference over all quantized tensors at both levels, each computed from
            the simulation's own inputs, in steps.
        tensors: one row a quantized tensor and level.
        outputs: one row a model output, level and kind of run.
        choices: one row an argmax, topk or sort and level.
        samples: rows of the example.
        fidelity: the simulation's outputs on the example compared with the float model's.
        compared_with_float: what these rows compare: outputs, models, data.
        warnings: what a person should know before shipping: outputs far from the float model,
            values off their grids, stale ranges.
        levels: the two whole runs.
        shipped: optimization levels at which the file as it is written was opened and run.
        others: further inputs on which it was proven: what differs from the example.
        operators: where each operator runs.
        skipped: quantized tensors that could not be compared.
        notes: what else is to be known about the file: operators that torch's exporter wrote, why
            the batch is not dynamic.
        risks: kernels whose sums can saturate on x86 CPUs without VNNI.
        cpu: the CPU that it was proven on, and whether its integer products are exact.
        kernels: what default kernels make of the file, where some CPUs do not compute exactly.
        seconds: duration of the proof.
        runtime: name and version of what it was proven against; empty without a proof.
        target: what the target computes on integers, by its own table.
    """

    proven: bool
    max_steps: int = 0
    tensors: tuple[TensorRow, ...] = ()
    outputs: tuple[OutputRow, ...] = ()
    choices: tuple[ChoiceRow, ...] = ()
    levels: tuple[LevelInfo, ...] = ()
    shipped: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    samples: int = 0
    fidelity: tuple[Agreement, ...] = ()
    compared_with_float: str = ""
    warnings: tuple[str, ...] = ()
    operators: tuple[OperatorRow, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    risks: tuple[Saturation, ...] = ()
    cpu: str = ""
    kernels: tuple[KernelRun, ...] = ()
    seconds: float = 0.0
    runtime: str = ""
    target: TargetCoverage | None = None

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
            ParityError: FXQ560 a quantized tensor differs by more than rounding, FXQ561 an output
                differs so, FXQ569 an index that was chosen (argmax, topk, sort) differs.
        """
        if self.proven:
            return
        forced = tuple(row for row in self.outputs if row.forced)
        code, what = verdict(self.tensors, self.choices, forced)
        if not code:  # a report without a proof
            return
        bad = sorted((r for r in self.tensors if r.unexplained), key=severity)
        chosen = [row.node for row in self.choices if not row.proven]
        at = _place(bad[0]) if bad else chosen[0] if chosen else None
        raise ParityError(code, what, at=at, fix=REPORT_IT)

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
        """The report as JSON; what is infinite is null there."""
        return json.dumps(_finite(self.to_dict()), indent=1, default=str)

    def __str__(self) -> str:
        return "\n".join(lines(self))


REPORT_IT = (
    "export with prove=False to look at the file, and report it: fxquant or onnxruntime is wrong"
)


def verdict(
    tensors: Sequence[TensorRow], choices: Sequence[ChoiceRow], outputs: Sequence[OutputRow]
) -> tuple[str, str]:
    """The code and the text of what is not proven; both empty where all is."""
    bad = sorted((r for r in tensors if r.unexplained), key=severity)
    if bad:
        return "FXQ560", _differing(bad)
    chosen = [row for row in choices if not row.proven]
    if chosen:
        return "FXQ569", _choices_differ(chosen)
    wrong = [row for row in outputs if not row.proven]
    return ("FXQ561", _outputs_differ(wrong)) if wrong else ("", "")


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


def _finite(value: Any) -> Any:
    """Plain data without infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
