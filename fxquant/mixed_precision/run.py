"""One search from its beginning to its result: what is compared, and what is taken."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from fxquant.errors import ConfigError
from fxquant.fingerprint import CALIBRATED, changed_since, mark_calibrated
from fxquant.graph.pass_infra import set_state, state_of
from fxquant.graph.pytree import tensors
from fxquant.mixed_precision.front import pareto
from fxquant.mixed_precision.groups import Group, find_groups
from fxquant.mixed_precision.mixed_result import FLOAT, MixedPrecisionResult, Point, Sensitivity
from fxquant.mixed_precision.prices import Prices
from fxquant.mixed_precision.progress_file import ProgressFile
from fxquant.mixed_precision.scores import Noise
from fxquant.mixed_precision.search import Judge, Search
from fxquant.mixed_precision.trials import Choice, Trials
from fxquant.precision.requests import note_changes
from fxquant.precision.sites import find_sites
from fxquant.ptq.snapshot import Snapshot, restore
from fxquant.quantization.decibels import decibels
from fxquant.quantization.digest import tensors_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from fxquant.mixed_precision.bit_candidates import Candidate
    from fxquant.mixed_precision.search_options import Options
    from fxquant.sim import QuantizationSimModel

log = logging.getLogger("fxquant")
_BISECTIONS = 12  # at most, in the count of evaluations that progress is told


class Run:
    """One search over one simulation.

    Args:
        sim: the simulation.
        candidates: what its groups may be.
        options: what is asked for.

    Raises:
        ConfigError: FXQ287, no group has a choice.
    """

    def __init__(
        self, sim: QuantizationSimModel, candidates: Sequence[Candidate], options: Options
    ) -> None:
        self.sim, self.gm, self.options = sim, sim.model, options
        self.candidates = candidates
        self.sites = find_sites(self.gm)
        self.groups = find_groups(self.gm, sim.target, candidates, self.sites)
        if not self.groups:
            what = "the simulation has no grid whose bits could be chosen"
            fix = "frozen grids stay as they are; sim.named_quantizers() lists all"
            raise ConfigError("FXQ287", what, fix=fix)
        self.why = state_of(self.gm).why
        known = self.gm.meta.get(CALIBRATED)
        self.fits = known is not None and not changed_since(self.gm, known)
        self.done = 0

    def put_back(self, before: Snapshot) -> None:
        """Let the simulation be what it was."""
        restore(self.sim, before)
        set_state(self.gm, why=self.why)

    def begin(
        self, folder: str | Path | None, *, clean_start: bool,
        progress: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        """Find every range, and what was found before."""
        options, model = self.options, tensors_digest(self.gm.state_dict())
        self.trials = Trials(self.sim, self.groups, options.data)
        noise = None
        if options.data is not None and not callable(options.data):
            with self.trials.without_grids():
                noise = Noise(self.gm, options.data, options.samples, options.threads)
        identity = self._identity(model, noise)
        file = ProgressFile(folder, identity, clean_start=clean_start)
        techniques = options.techniques, options.data
        judge = Judge(options.evaluate, options.by_score, noise, techniques)
        self.finder = Search(self.trials, judge, file, self._tell)
        self.prices = Prices(self.trials, self.sites, options, file)
        self.progress = progress
        self.most = sum(len(g.options) for g in self.groups) + len(self.candidates)
        self.most += options.points + options.trials + _BISECTIONS

    def _identity(self, model: str, noise: Noise | None) -> dict[str, Any]:
        options = self.options
        seen = [] if noise is None else [t for b in noise.batches for t in tensors(b)]
        return {
            "model": model,
            "target": self.sim.target.name,
            "groups": [[g.name, [str(o) for o in g.options]] for g in self.groups],
            "data": tensors_digest({str(i): t for i, t in enumerate(seen)}),
            "accuracy": "sqnr" if options.evaluate is None else "evaluate",
            "sensitivity": "evaluate" if options.by_score else "sqnr",
            "techniques": [getattr(t, "__qualname__", repr(type(t))) for t in options.techniques],
        }

    def _tell(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, max(self.most, self.done))

    # --- searching ------------------------------------------------------------------------------

    def search(self) -> None:
        """Evaluate what is to be compared."""
        finder, options = self.finder, self.options
        self.reference = finder.reference()
        self.losses, costs = finder.losses(self.reference), self.prices.of_options
        path = finder.path(self.losses, costs)
        self.integer = finder.least(self.losses, costs, self._in_integers)
        for choice in self._compared():
            finder.accuracy(choice)
        self.least = self._least(path)
        if self.least is not None:
            finder.descend(path, self.least, options.trials)
            good = [c for c, (accuracy, _) in finder.found.items() if accuracy >= self.least]
            if good:
                here = min(filter(self._is_offered, good), key=self._predicted)
                finder.lighten(here, self.prices.lighter(here), self.least, options.trials)
        finder.spread(path, options.points)

    def _is_offered(self, choice: Choice) -> bool:
        """Whether a choice is made of candidates."""
        return all(j < g.offered for g, j in zip(self.groups, choice, strict=True))

    def _predicted(self, choice: Choice) -> tuple[float, Any]:
        return self.prices.predicted(choice), choice

    def _compared(self) -> list[Choice]:
        """Choices that the report compares in any case."""
        return [*(() if self.integer is None else (self.integer,)), *self._uniform]

    def _in_integers(self, group: Group, option: int) -> bool:
        return group.is_integer(group.options[option], self.sim.target)

    def _on_grids(self, group: Group, option: int) -> bool:
        found = group.precisions(group.options[option])
        return option < group.offered and all(p is not None for p in found.values())

    @property
    def _uniform(self) -> dict[Choice, str]:
        """Choices in which all groups have the same candidate."""
        found: dict[Choice, str] = {}
        for one in self.candidates:
            choice = tuple(g.options.index(g.option_of(one)) for g in self.groups)
            found.setdefault(choice, str(one))
        return found

    def _least(self, path: Sequence[Choice]) -> float | None:
        """The accuracy that is to be kept."""
        if self.options.allowed is None:
            return None
        if self.options.evaluate is not None:
            return self.reference - self.options.allowed
        best = self.finder.least(self.losses, self.prices.of_options, self._on_grids)
        return self.finder.accuracy(best or path[0]) - self.options.allowed

    # --- the result -----------------------------------------------------------------------------

    def result(self) -> MixedPrecisionResult:
        """Choose, apply, and say what was found."""
        found, options = self.finder.found, self.options
        if options.cost == "latency":
            worth = self.prices.worth_measuring(found, self._compared())
            self.prices.measure(worth)
        priced = [c for c in found if self.prices.cost(c) is not None]
        chosen = self._chosen(priced)
        if options.cost != "latency" and self._reports_latency():
            self.prices.measure([c for c in (self.integer, chosen) if c is not None])
        points = {c: self._point(c) for c in priced}
        if chosen is not None:
            self._apply(chosen)
        met = self.least is not None and chosen is not None and found[chosen][0] >= self.least
        if chosen is not None and not met:
            log.warning("choose_mixed_precision: no choice keeps the accuracy that was asked for")
        return MixedPrecisionResult(
            pareto=tuple(pareto(list(points.values()), lambda p: p.cost, lambda p: p.rank)),
            sensitivities=self._sensitivities(),
            chosen=None if chosen is None else points[chosen],
            all_integer=None if self.integer is None else points.get(self.integer),
            reference=self._float_point(),
            met=met,
            points=tuple(points.values()),
            cost=options.cost,
            measure="sqnr" if options.evaluate is None else "evaluate",
            allowed=options.allowed,
            evaluations=self.done,
        )

    def _reports_latency(self) -> bool:
        asked = self.options.latency
        return self.sim.target.contrib if asked is None else asked

    def _chosen(self, priced: Sequence[Choice]) -> Choice | None:
        if self.least is None:
            return None
        found, prices = self.finder.found, {c: self.prices.weight(c) for c in priced}
        offered = list(filter(self._is_offered, priced))
        best_first = sorted(offered, key=found.__getitem__, reverse=True)
        good = [c for c in best_first if found[c][0] >= self.least]
        return min(good, key=prices.__getitem__) if good else best_first[0]

    def _apply(self, choice: Choice) -> None:
        self.trials.apply(choice)
        note_changes(
            self.gm, [s for g in self.groups for s in g.sites if s.precision != g.before[s]]
        )
        if self.fits:
            mark_calibrated(self.gm)
        for technique in self.options.techniques:
            technique(self.sim, self.options.data)

    def _point(self, choice: Choice) -> Point:
        pairs = list(zip(self.groups, choice, strict=True))
        cost, (accuracy, sqnr) = self.prices.cost(choice), self.finder.found[choice]
        return Point(
            options={g.name: str(g.options[i]) for g, i in pairs},
            accuracy=accuracy,
            sqnr_db=None if self.finder.judge.noise is None else sqnr,
            cost=math.inf if cost is None else cost,
            size=self.prices.size(choice),
            bit_operations=self.prices.operations(choice),
            latency=self.prices.latency(choice),
            integer=all(self._in_integers(g, i) for g, i in pairs),
            label=self._uniform.get(choice, ""),
        )

    def _float_point(self) -> Point:
        size, operations = self.prices.costs.of_float()
        latency = self.prices.latency(None)
        cost = {"size": size, "bit_operations": operations, "latency": latency}[self.options.cost]
        return Point(
            {}, self.reference, math.inf, math.inf if cost is None else cost, size, operations,
            latency, integer=False, label=FLOAT,
        )  # fmt: skip

    def _sensitivities(self) -> tuple[Sensitivity, ...]:
        found: list[tuple[float, Sensitivity]] = []
        for i, group in enumerate(self.groups):
            for j in range(group.offered):
                score, noise = self.finder.alone(i, j)
                db = None if noise is None else decibels(1.0, noise)
                option, cost = str(group.options[j]), self.prices.of_options[i][j]
                row = Sensitivity(group.name, option, score, db, cost)
                found.append((self.losses[i][j], row))
        return tuple(row for _, row in sorted(found, key=lambda pair: -pair[0]))
