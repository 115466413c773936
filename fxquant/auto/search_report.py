"""The report of a search: what was tried, what it gained, what it cost."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fxquant.auto.techniques import with_technique
from fxquant.io.text_tables import table

if TYPE_CHECKING:
    from fxquant.auto.journal import Trial
    from fxquant.auto.scoring import Score
    from fxquant.auto.techniques import Combination

_PLAIN = "simulation"


@dataclass(frozen=True)
class AutoReport:
    """What a search tried.

    Attributes:
        trials: in the order in which they were tried; the first is the plain simulation.
        best: the combination that was taken.
        float_score: score of the float model; infinite when decibels are the score.
        target: lowest score that is good enough; None: there was none.
        measured: whether the caller's `evaluate` is the score; else it is decibels.
        skipped: why techniques were not tried, by name.
        forward_seconds: CPU seconds of the float model for one batch.
        batch: samples of such a batch.
        held_out: samples that decibels were measured on, none of them calibrated with; 0: there
            were too few, or `evaluate` is the score.
        resumed: trials that an earlier process made.
    """

    trials: tuple[Trial, ...]
    best: Combination
    float_score: float
    target: float | None = None
    measured: bool = True
    skipped: dict[str, str] = field(default_factory=dict)
    forward_seconds: float = 0.0
    batch: int = 0
    held_out: int = 0
    resumed: int = 0

    @property
    def met(self) -> bool:
        """Whether the target was reached; true where there was none."""
        return self.target is None or self.score >= self.target

    @property
    def score(self) -> float:
        """The score of what was taken."""
        return self._score(self.best)

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of all trials."""
        return sum(t.cpu_seconds for t in self.trials)

    def forwards(self, seconds: float) -> float:
        """CPU seconds in forward passes of the float model over one batch."""
        return seconds / self.forward_seconds if self.forward_seconds > 0 else 0.0

    def gains(self) -> tuple[float | None, ...]:
        """What each trial gained over the best one before it; None for the first and unscored."""
        best, found = -math.inf, list[float | None]()
        for trial in self.trials:
            if trial.score is None:
                found.append(None)
                continue
            value = trial.score.value
            found.append(None if best == -math.inf else _difference(value, best))
            best = max(best, value)
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data; what is infinite is None."""
        return {
            "float_score": _finite(self.float_score),
            "target": self.target,
            "score": _finite(self.score),
            "met": self.met,
            "best": list(self.best),
            "trials": [
                {
                    "techniques": list(t.names), "added": t.added, "note": t.note,
                    "score": None if t.score is None else _finite(t.score.value),
                    "decibels": None if t.score is None else _finite(t.score.decibels),
                    "gain": None if gain is None else _finite(gain),
                    "cpu_seconds": t.cpu_seconds, "seconds": t.seconds,
                    "forwards": self.forwards(t.cpu_seconds),
                }
                for t, gain in zip(self.trials, self.gains(), strict=True)
            ],
            "skipped": self.skipped,
            "cpu_seconds": self.cpu_seconds,
            "forwards": self.forwards(self.cpu_seconds),
            "resumed": self.resumed,
        }  # fmt: skip

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    def _score(self, names: Combination) -> float:
        score = next((t.score for t in self.trials if t.names == names), None)
        return -math.inf if score is None else score.value

    def __str__(self) -> str:
        heads = ("", "tried", "on", *(("score",) if self.measured else ()), "dB", "gain", "CPU s",
                 "forwards")  # fmt: skip
        gains = zip(self.trials, self.gains(), strict=True)
        rows = [self._row(t, t.score, g) for t, g in gains if t.score is not None]
        lines = [table(heads, rows), ""]
        lines += [f"{t.added}: {t.note}" for t in self._told()]
        lines += [f"not tried: {name}, {reason}" for name, reason in self.skipped.items()]
        return "\n".join([*lines, *self._summary()])

    def _row(self, trial: Trial, score: Score, gain: float | None) -> tuple[str, ...]:
        mark = "*" if trial.names == self.best else ""
        value = (f"{score.value:.4g}",) if self.measured else ()
        return (
            f"{self._number(trial)}{mark}", trial.added or _PLAIN, self._base(trial), *value,
            f"{score.decibels:.1f}", "" if gain is None else f"{gain:+.3g}",
            f"{trial.cpu_seconds:.2f}", f"{self.forwards(trial.cpu_seconds):.0f}",
        )  # fmt: skip

    def _number(self, trial: Trial) -> int:
        return [t.names for t in self.trials if t.score is not None].index(trial.names) + 1

    def _base(self, trial: Trial) -> str:
        """The number of the trial that one was made from."""
        scored = (t for t in self.trials if t.score is not None and t.names != trial.names)
        for other in scored if trial.added else ():
            if with_technique(other.names, trial.added) == trial.names:
                return str(self._number(other))
        return ""

    def _told(self) -> list[Trial]:
        """The last trial of every technique that says what it did."""
        return list({t.added: t for t in self.trials if t.note and t.added}.values())

    def _summary(self) -> list[str]:
        unit = "" if self.measured else " dB"
        score = self.score
        name = " + ".join(self.best) or _PLAIN
        lines = [f"taken (*): {name}, score {score:.4g}{unit}"]
        if self.measured:
            lines[0] += f"; the float model has {self.float_score:.4g}"
        if self.target is not None:
            verdict = "reached" if self.met else "MISSED"
            lines.append(f"asked for: {self.target:.4g}, {verdict}")
        samples = "sample" if self.held_out == 1 else "samples"
        how = f"{self.held_out} {samples} held out" if self.held_out else "the calibration data"
        lines.append(f"dB: signal to noise against the float model, on {how}")
        cost = self.forwards(self.cpu_seconds)
        lines.append(
            f"{self.cpu_seconds:.1f} s of CPU: {cost:.0f} float forward passes of {self.batch} "
            "samples"
        )
        if self.resumed:
            lines.append(f"{self.resumed} of {len(self.trials)} trials are of a run before")
        return lines


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _difference(value: float, best: float) -> float:
    return 0.0 if value == best else value - best
