"""What a search for mixed precision found, and its report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fxquant.io.text_tables import table

FLOAT = "float"  # label of the float model
UNITS = {"size": "kB", "bit_operations": "G bit operations", "latency": "ms"}
_SCALES = {"size": 1e-3, "bit_operations": 1e-9, "latency": 1e3}


@dataclass(frozen=True)
class Sensitivity:
    """What one group loses with one option, all other grids in floating point.

    Attributes:
        group: its name.
        option: precisions, such as "A8 W4".
        score: what `evaluate` says; None where the noise decides.
        sqnr_db: ratio of signal to noise at the outputs against float; None without data.
        cost: cost of the group with this option.
    """

    group: str
    option: str
    score: float | None
    sqnr_db: float | None
    cost: float


@dataclass(frozen=True)
class Point:
    """One choice of precisions that was evaluated.

    Attributes:
        options: option by group.
        accuracy: what `evaluate` says, or the ratio of signal to noise in decibels.
        sqnr_db: ratio of signal to noise at the outputs; None without data.
        cost: its cost, in the unit of the search.
        size: bytes of the weights.
        bit_operations: of the example inputs.
        latency: seconds in onnxruntime; None if it was not measured.
        integer: whether the target computes all groups in integers.
        label: "float", or the candidate where all groups have the same one.
    """

    options: Mapping[str, str]
    accuracy: float
    sqnr_db: float | None
    cost: float
    size: float
    bit_operations: float
    latency: float | None
    integer: bool
    label: str = ""

    @property
    def rank(self) -> tuple[float, float]:
        """What it is compared by: of equal accuracies, the one with less noise is better."""
        return self.accuracy, self.sqnr_db or 0.0


@dataclass(frozen=True)
class MixedPrecisionResult:
    """The result of a search.

    Attributes:
        pareto: evaluated choices that no other one dominates, by rising cost.
        sensitivities: of every group and option, the most harmful first.
        chosen: what the simulation has now; None if nothing was to be chosen.
        all_integer: the most accurate choice that the target computes in integers throughout; None
            where there is none.
        reference: the float model.
        met: whether the chosen one loses no more than was allowed.
        points: all choices that were evaluated.
        cost: "size", "bit_operations" or "latency".
        measure: what accuracy is: "evaluate" or "sqnr".
        allowed: what accuracy may drop by, None for no limit.
        evaluations: how often the model was evaluated.
    """

    pareto: tuple[Point, ...]
    sensitivities: tuple[Sensitivity, ...]
    chosen: Point | None
    all_integer: Point | None
    reference: Point
    met: bool
    points: tuple[Point, ...]
    cost: str
    measure: str
    allowed: float | None
    evaluations: int

    @property
    def report(self) -> str:
        """The result as a text."""
        return str(self)

    def to_json(self) -> str:
        """The result as JSON."""
        return json.dumps(_plain(asdict(self)), indent=2)

    def __str__(self) -> str:
        parts = [self._summary(), self._front(), self._costly()]
        if self.chosen is not None:
            parts.insert(1, self._choice(self.chosen))
        return "\n\n".join(part for part in parts if part)

    def _summary(self) -> str:
        rows = [("float", self.reference)]
        if self.all_integer is not None:
            rows.append(("all integer", self.all_integer))
        if self.chosen is not None:
            rows.append(("chosen", self.chosen))
        heads = ("", self._accuracy_head(), "size kB", "G bit operations", "latency ms")
        text = table(heads, [(name, *self._cells(point)) for name, point in rows])
        if any(point.latency is not None for _, point in rows):
            text += "\nlatency: of one run of the file in onnxruntime, on the example inputs"
        return text + self._verdict()

    def _accuracy_head(self) -> str:
        return "accuracy" if self.measure == "evaluate" else "SQNR dB"

    def _verdict(self) -> str:
        if self.chosen is None or self.allowed is None:
            return ""
        unit = "" if self.measure == "evaluate" else " dB"
        if self.met:
            return f"\nthe drop is within the allowed {self.allowed:g}{unit}"
        return (
            f"\nno choice stays within the allowed drop of {self.allowed:g}{unit}: "
            "the most accurate one was taken"
        )

    def _cells(self, point: Point) -> tuple[str, ...]:
        latency = "" if point.latency is None else f"{point.latency * 1e3:.3f}"
        return (
            self._accuracy(point), f"{point.size * 1e-3:.1f}", f"{point.bit_operations * 1e-9:.3f}",
            latency,
        )  # fmt: skip

    def _accuracy(self, point: Point) -> str:
        if self.measure == "evaluate":
            return f"{point.accuracy:.4f}"
        return f"{point.accuracy:.1f}" if math.isfinite(point.accuracy) else ""

    def _choice(self, point: Point) -> str:
        return table(("group", "chosen"), list(point.options.items()))

    def _front(self) -> str:
        """The Pareto front, with how many groups have which option."""
        head = f"{self.cost} {UNITS[self.cost]}".replace("bit_operations ", "")
        rows = [
            (f"{p.cost * _SCALES[self.cost]:.3f}", self._accuracy(p), _counted(p))
            for p in self.pareto
        ]
        return "Pareto front\n" + table((head, self._accuracy_head(), "groups"), rows)

    def _costly(self) -> str:
        shown = self.sensitivities[:_LISTED]
        scored = any(s.score is not None for s in shown)
        heads = ["group", "option", *(("accuracy", "loses") if scored else ()), "SQNR dB"]
        rows = []
        for s in shown:
            score = 0.0 if s.score is None else s.score
            lost = (f"{score:.4f}", f"{self.reference.accuracy - score:.4f}") if scored else ()
            db = "" if s.sqnr_db is None else f"{s.sqnr_db:.1f}"
            rows.append((s.group, s.option, *lost, db))
        more = len(self.sensitivities) - len(rows)
        rest = f"\n... and {more} more" if more > 0 else ""
        return "Most sensitive, quantized alone\n" + table(heads, rows) + rest


_LISTED = 12


def _counted(point: Point) -> str:
    if point.label:
        return f"all {point.label}"
    counts: dict[str, int] = {}
    for option in point.options.values():
        counts[option] = counts.get(option, 0) + 1
    return ", ".join(f"{n} x {option}" for option, n in sorted(counts.items()))


def _plain(value: Any) -> Any:
    """What JSON can say: infinity is no number there."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
