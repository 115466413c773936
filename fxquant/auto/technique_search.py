"""The search: add techniques one after the other, keep those that help, stop at the target.

Techniques are added to the best combination so far; one that lowers the score is left out again.
A measure of few samples is noisy and says little of small steps, so a technique is also added to
the combination that is nearest to the float model, where that is another one. Such chains may end
below what one technique alone reaches, as what was kept early can stand in the way of what comes
later; so those that were never alone are tried alone at the end, and another chain starts from one
that is better so. The result is the best of all that was tried, hence never worse than the best
single technique.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxquant.auto.journal import Trial
from fxquant.auto.scoring import Score
from fxquant.auto.techniques import Combination, Inapplicable, Technique, with_technique
from fxquant.errors import FxQuantError
from fxquant.tracking.events import OnEvent, Value, emit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.auto.journal import Journal
    from fxquant.auto.scoring import Scorer
    from fxquant.auto.simulations import Simulations

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """When to stop.

    Attributes:
        target: a score that is good enough; None: everything is tried.
        seconds: on the clock, after which no technique is begun; None: no limit.
        trials: so many are made at most, as an earlier search had time for; None: any number.
        thorough: alternatives are tried on top of others, too.
        strict: an error of a technique ends the search; else it is told, and the search goes on.
    """

    target: float | None = None
    seconds: float | None = None
    trials: int | None = None
    thorough: bool = True
    strict: bool = True


class Search:
    """One search.

    Args:
        rows: the techniques that may be tried, in the order of the table.
        simulations: makes simulations of combinations.
        scorer: scores them.
        journal: what an earlier process found already.
        limits: when to stop.
        progress: called with a text before every trial.
        on_event: told of "quantize.trial" after every trial.

    Attributes:
        best: the best combination.
        nearest: the one with most decibels.
        skipped: why techniques were not tried, by name.
    """

    def __init__(
        self, rows: Sequence[Technique], simulations: Simulations, scorer: Scorer,
        journal: Journal, limits: Limits, progress: Progress | None = None,
        on_event: OnEvent | None = None,
    ) -> None:  # fmt: skip
        self.rows, self.simulations, self.scorer = rows, simulations, scorer
        self.journal, self.limits, self.progress = journal, limits, progress
        self.on_event = on_event
        self.best: Combination = ()
        self.nearest: Combination = ()
        self.skipped: dict[str, str] = {}
        self._begin = time.monotonic()
        self._before = sum(t.seconds for t in journal.trials.values())

    def run(self) -> Trial:
        """Search.

        Returns:
            The trial of the best combination.

        Raises:
            FxQuantError: the plain simulation cannot be made or scored.
        """
        self._consider((), "")
        first = [row for row in self.rows if not row.last and self._applies(row)]
        first.sort(key=lambda row: row.late)
        last = [row for row in self.rows if row.last and self._applies(row)]
        self._chain(first)
        before = self.best
        for row in first:
            self._consider((row.name,), row.name)
        if self.best != before:  # what stood in the way is not on it
            self._chain(first)
        for row in last:
            self._consider(with_technique(self.best, row.name), row.name)
        return self.journal.trials[self.best]

    def _chain(self, rows: Sequence[Technique]) -> None:
        for row in rows:
            if row.alternative and not self.limits.thorough:
                continue
            self._consider(with_technique(self.best, row.name), row.name)
            self._consider(with_technique(self.nearest, row.name), row.name)

    def _applies(self, row: Technique) -> bool:
        reason = row.unless(self.simulations.case)
        if reason:
            self.skipped[row.name] = reason
        return not reason

    def _is_met(self) -> bool:
        target = self.limits.target
        return target is not None and self._score(self.best).value >= target

    def _is_late(self) -> bool:
        if self.limits.trials is not None:
            return len(self.journal.trials) >= self.limits.trials
        passed = self._before + time.monotonic() - self._begin
        return self.limits.seconds is not None and passed > self.limits.seconds

    def _score(self, names: Combination) -> Score:
        found = self.journal.trials[names].score
        return found if found is not None else Score(-math.inf, -math.inf)

    def _consider(self, names: Combination, added: str) -> None:
        trial = self.journal.trials.get(names)
        if names and (self._is_met() or (trial is None and self._is_late())):
            return
        is_new = trial is None
        if trial is None:
            trial = self._tried(names, added)
            if trial.score is not None:
                self.simulations.keep(names)
            self.journal.put(trial)
            self._tell(trial)
        if self._score(names) > self._score(self.best):
            self.best = names
        if self._score(names).decibels > self._score(self.nearest).decibels:
            self.nearest = names
        if is_new:  # what an earlier process found is needed until all of it has been read
            self.journal.forget(self.best, self.nearest)
        if trial.idle:
            self._consider(tuple(n for n in names if n != trial.idle), added)

    def _tell(self, trial: Trial) -> None:
        score = trial.score
        values: dict[str, Value | None] = {
            "step": len(self.journal.trials),
            "techniques": " + ".join(trial.names),
            "score": None if score is None else score.value,
            "decibels": None if score is None else score.decibels,
            "note": trial.note,
            "cpu_seconds": trial.cpu_seconds,
        }
        emit(self.on_event, "quantize.trial", values)

    def _tried(self, names: Combination, added: str) -> Trial:
        text = " + ".join(names) or "the simulation"
        if self.progress is not None:
            self.progress(f"trying {text}")
        begin, clock = time.process_time(), time.monotonic()
        score: Score | None = None
        idle = ""
        try:
            sim = self.simulations.of(names)
        except Inapplicable as reason:
            note, idle = str(reason), reason.name if reason.name != added else ""
        except FxQuantError as error:
            if self.limits.strict or not names:
                raise
            note = f"{error.code}: {error.what}"
        else:
            score = self.scorer.of(sim, text)
            note = self.simulations.notes.get(added, "")
        return Trial(
            names, added, score, note, idle, time.process_time() - begin, time.monotonic() - clock
        )
