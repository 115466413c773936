"""The search: sensitivity of every group, a path from accurate to cheap, a point on it.

1. Every group alone, with every option, while all other grids are in floating point: as many
   evaluations as there are groups times options.
2. What options lose and cost gives a path (`front.steepest_path`), along which the accuracy falls
   more or less steadily. The cheapest point that keeps enough is found by bisection.
3. From there, single steps that lie farther along the path are tried one by one.

A sum of losses only orders the choices: whatever is chosen or reported was evaluated as a whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxquant.mixed_precision.front import steepest_path
from fxquant.mixed_precision.scores import Noise, score_of
from fxquant.ptq.snapshot import restore, snapshot
from fxquant.quantization.decibels import decibels

if TYPE_CHECKING:
    from fxquant.mixed_precision.groups import Group
    from fxquant.mixed_precision.progress_file import ProgressFile
    from fxquant.mixed_precision.trials import Choice, Trials

Technique = Callable[[Any, Any], Any]
Verdict = tuple[float | None, float | None]
"""What `evaluate` says, and the noise as a share of the signal; None for what was not asked."""
_TIE = 1e-6  # weight of the noise beside a score: it decides between equal ones only


@dataclass(frozen=True)
class Judge:
    """What says how good a choice is.

    Attributes:
        evaluate: the user's function; None: the ratio of signal to noise in decibels.
        by_score: whether sensitivities are found by `evaluate`, too.
        noise: the noise at the outputs; None without data.
        techniques: what is done to a simulation before it is judged, and data for that.
    """

    evaluate: Callable[[Any], Any] | None
    by_score: bool
    noise: Noise | None
    techniques: tuple[Sequence[Technique], Any]


class Search:
    """Evaluates choices, each once.

    Attributes:
        found: choice -> its accuracy and its ratio of signal to noise, 0 without data.

    Args:
        trials: the simulation.
        judge: says how good it is.
        progress: what was found before.
        tell: called after every evaluation.
    """

    def __init__(
        self, trials: Trials, judge: Judge, progress: ProgressFile, tell: Callable[[], None]
    ) -> None:
        self.trials, self.judge, self.progress, self.tell = trials, judge, progress, tell
        self.groups: Sequence[Group] = trials.groups
        self.found: dict[Choice, tuple[float, float]] = {}
        self._alone: dict[tuple[int, int], Verdict] = {}

    # --- measuring ------------------------------------------------------------------------------

    def _once(self, stage: str, key: str, measure: Callable[[], Any]) -> Any:
        found = self.progress.once(stage, key, measure)
        self.tell()
        return found

    def reference(self) -> float:
        """What `evaluate` says of the float model; infinity without it."""

        def measure() -> Verdict:
            with self.trials.without_grids():
                return self._judged(self.judge.evaluate)

        if self.judge.evaluate is None:
            return math.inf
        return float(self._once("reference", "float", measure)[0])

    def alone(self, group: int, option: int) -> Verdict:
        """One group with an option, all else in floating point."""

        def measure() -> Verdict:
            with self.trials.alone(self.groups[group], option):
                return self._judged(self.judge.evaluate if self.judge.by_score else None)

        key = group, option
        if key not in self._alone:
            score, noise = self._once("alone", f"{group} {option}", measure)
            self._alone[key] = score, noise
        return self._alone[key]

    def accuracy(self, choice: Choice) -> float:
        """How good a choice is, as a whole."""
        if choice not in self.found:
            key = " ".join(map(str, choice))
            score, noise = self._once("choices", key, lambda: self._whole(choice))
            sqnr = 0.0 if noise is None else decibels(1.0, noise)
            self.found[choice] = sqnr if score is None else score, sqnr
        return self.found[choice][0]

    def _whole(self, choice: Choice) -> Verdict:
        techniques, data = self.judge.techniques
        before = snapshot(self.trials.sim) if techniques else None
        self.trials.apply(choice)
        try:
            for technique in techniques:
                technique(self.trials.sim, data)
            return self._judged(self.judge.evaluate)
        finally:
            if before is not None:
                restore(self.trials.sim, before)

    def _judged(self, evaluate: Callable[[Any], Any] | None) -> Verdict:
        """The simulation as it is."""
        score = None if evaluate is None else score_of(evaluate, self.trials.gm, kept=True)
        return score, None if self.judge.noise is None else self.judge.noise.share()

    # --- searching ------------------------------------------------------------------------------

    def losses(self, reference: float) -> list[list[float]]:
        """What every option of every group loses, alone."""
        found = []
        for i, group in enumerate(self.groups):
            alone = [self.alone(i, j) for j in range(len(group.options))]
            found.append([self._loss(score, noise, reference) for score, noise in alone])
        return found

    def _loss(self, score: float | None, noise: float | None, reference: float) -> float:
        if score is None:
            return noise or 0.0
        return max(reference - score, 0.0) + _TIE * max(abs(reference), 1e-3) * (noise or 0.0)

    def least(
        self, losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]],
        allowed: Callable[[Group, int], bool],
    ) -> Choice | None:  # fmt: skip
        """The choice with the smallest losses among allowed options; None if a group has none."""
        found = []
        for i, group in enumerate(self.groups):
            free = [j for j in range(len(group.options)) if allowed(group, j)]
            if not free:
                return None
            found.append(min(free, key=lambda j: (losses[i][j], costs[i][j], j)))
        return tuple(found)

    def path(
        self, losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]]
    ) -> list[Choice]:
        """Choices among what is offered, from the most accurate to the cheapest."""
        return steepest_path(
            [
                list(zip(costs[i][: g.offered], losses[i][: g.offered], strict=True))
                for i, g in enumerate(self.groups)
            ]
        )

    def descend(self, path: Sequence[Choice], least: float, trials: int) -> None:
        """Look for the cheapest choice that keeps the accuracy `least`."""
        if self.accuracy(path[0]) < least:
            return
        low, high = 0, len(path)  # path[low] is good enough
        if self.accuracy(path[-1]) >= least:
            return
        while high - low > 1:
            middle = (low + high) // 2
            if self.accuracy(path[middle]) >= least:
                low = middle
            else:
                high = middle
        self._steps(path[low], path[low:], least, trials)

    def _steps(self, here: Choice, path: Sequence[Choice], least: float, trials: int) -> None:
        """Steps of the path beyond the first that costs too much, one by one."""
        lost: set[int] = set()
        for before, after in itertools.islice(itertools.pairwise(path), trials):
            group = next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
            if group in lost:
                continue
            step = (*here[:group], after[group], *here[group + 1 :])
            if self.accuracy(step) >= least:
                here = step
            else:
                lost.add(group)  # its later steps cost more

    def lighten(self, here: Choice, lighter: Choice, least: float, trials: int) -> None:
        """Try options that cost the same and are lighter otherwise, at once and one by one.

        Args:
            here: a choice that is good enough.
            lighter: for every group such an option, or the one that it has.
            least: the accuracy that is to be kept.
            trials: how many are tried one by one.
        """
        if lighter == here or self.accuracy(lighter) >= least:
            return
        moved = [i for i, (a, b) in enumerate(zip(here, lighter, strict=True)) if a != b]
        for group in moved[:trials]:
            step = (*here[:group], lighter[group], *here[group + 1 :])
            if self.accuracy(step) >= least:
                here = step

    def spread(self, path: Sequence[Choice], points: int) -> None:
        """Evaluate points along the path."""
        last = len(path) - 1
        for i in range(points):
            self.accuracy(path[round(i * last / max(points - 1, 1))])
