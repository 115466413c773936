"""What options and choices cost in the unit of a search, and how long files take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fxquant.graph.rewriter import label
from fxquant.mixed_precision.costs import Costs, bits
from fxquant.mixed_precision.front import pareto
from fxquant.mixed_precision.mixed_result import FLOAT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fxquant.mixed_precision.groups import Group, Option
    from fxquant.mixed_precision.latency import Stopwatch
    from fxquant.mixed_precision.progress_file import ProgressFile
    from fxquant.mixed_precision.search_options import Options
    from fxquant.mixed_precision.trials import Choice, Trials
    from fxquant.precision.sites import Sites

_STAGE = "latency"


class Prices:
    """Costs of options and choices.

    Args:
        trials: the simulation.
        sites: its grids.
        options: which cost is asked for.
        file: what was measured before.
    """

    def __init__(self, trials: Trials, sites: Sites, options: Options, file: ProgressFile) -> None:
        from fxquant.onnx.runs.observed import bound_example  # it loads onnx_ir

        self.trials, self.options, self.file = trials, options, file
        self.groups: Sequence[Group] = trials.groups
        values = bound_example(trials.gm, trials.sim.example)
        self.costs = Costs(trials.gm, sites, self.groups, values)
        self.times: dict[str, float] = {}
        self._of_options: list[list[float]] | None = None

    @property
    def of_options(self) -> list[list[float]]:
        """Cost of every option of every group; times are those of its operators in a file."""
        if self._of_options is None:
            if self.options.cost == "latency":
                self._of_options = self._kernel_times()
            else:
                of = self.costs.size if self.options.cost == "size" else self.costs.operations
                self._of_options = [[of(g, option) for option in g.options] for g in self.groups]
        return self._of_options

    def lighter(self, choice: Choice) -> Choice:
        """For every group the option that costs no more and is the lightest otherwise."""
        found = []
        for group, costs, index in zip(self.groups, self.of_options, choice, strict=True):
            same = [j for j in range(group.offered) if costs[j] <= costs[index]]
            others = [self._other(group, option) for option in group.options]
            best = min(same, key=others.__getitem__)
            found.append(best if others[best] < others[index] else index)
        return tuple(found)

    def _other(self, group: Group, option: Option) -> tuple[float, int]:
        """What decides between equal costs: the other cost, then the bits of all grids."""
        of = self.costs.operations if self.options.cost == "size" else self.costs.size
        return of(group, option), sum(map(bits, group.precisions(option).values()))

    def weight(self, choice: Choice) -> tuple[float, float, int]:
        """Cost of a choice, and what decides between equal costs."""
        cost = self.cost(choice)
        pairs = zip(self.groups, choice, strict=True)
        others = [self._other(g, g.options[i]) for g, i in pairs]
        first, second = (sum(part) for part in zip(*others, strict=True))
        return math.inf if cost is None else cost, first, int(second)

    def _kernel_times(self) -> list[list[float]]:
        """As many files as there are options: in each of them all groups have one of theirs."""
        found: list[list[float]] = [[] for _ in self.groups]
        for number in range(max(len(g.options) for g in self.groups)):
            choice = tuple(min(number, len(g.options) - 1) for g in self.groups)
            times = self.file.once(_STAGE, f"kernels {number}", self._kernels(choice))
            for group, costs in zip(self.groups, found, strict=True):
                if number < len(group.options):
                    costs.append(sum(times.get(label(n), 0.0) for n in group.nodes))
        return found

    def _kernels(self, choice: Choice) -> Callable[[], dict[str, float]]:
        return lambda: self._watch().kernels(self._put(choice))

    def _watch(self) -> Stopwatch:
        # it needs onnxruntime, the rest does not
        from fxquant.mixed_precision.latency import Stopwatch

        return Stopwatch(self.trials.sim, self.options.rounds, self.options.threads or 1)

    def _put(self, choice: Choice) -> Callable[[], None]:
        return lambda: self.trials.apply(choice)

    def measure(self, choices: Sequence[Choice]) -> None:
        """Measure choices and the float model in onnxruntime, in one run."""
        names = {_key(c): self._put(c) for c in dict.fromkeys(choices)}
        self.times = self.file.once(
            _STAGE, ", ".join(names), lambda: self._watch().interleaved(names)
        )

    def worth_measuring(self, found: dict[Choice, Any], others: Sequence[Choice]) -> list[Choice]:
        """Choices on the front of predicted costs, and others."""
        return list(
            dict.fromkeys([*pareto(list(found), self.predicted, found.__getitem__), *others])
        )

    def predicted(self, choice: Choice) -> float:
        """Sum of the costs of a choice's options."""
        return sum(costs[i] for costs, i in zip(self.of_options, choice, strict=True))

    def size(self, choice: Choice) -> float:
        """Bytes of all weights."""
        return self._sum(self.costs.size, self.costs.rest_size, choice)

    def operations(self, choice: Choice) -> float:
        """Bit operations on the example."""
        return self._sum(self.costs.operations, self.costs.rest_operations, choice)

    def _sum(self, of: Callable[[Group, Any], float], rest: float, choice: Choice) -> float:
        return rest + sum(of(g, g.options[i]) for g, i in zip(self.groups, choice, strict=True))

    def latency(self, choice: Choice | None) -> float | None:
        """Seconds in onnxruntime, of the float model for None; None if they were not measured."""
        return self.times.get(FLOAT if choice is None else _key(choice))

    def cost(self, choice: Choice) -> float | None:
        """Cost of a choice; None if it was not measured."""
        if self.options.cost == "latency":
            return self.latency(choice)
        return self.size(choice) if self.options.cost == "size" else self.operations(choice)


def _key(choice: Choice) -> str:
    return " ".join(map(str, choice))
