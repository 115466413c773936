"""Passes and pipelines: the order of rewrites is data, and a wrong order cannot be built.

A `Pass` states the facts about a graph that it needs, gives and breaks. A `Pipeline` adds them up
when it is built. The facts that hold for a graph travel with it (`state_of`), so a pass that is run
alone knows whether the graph is ready for it.
"""

from __future__ import annotations

import enum
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxquant.errors import FxQuantError, PassError
from fxquant.graph.pass_log import Gone, Skip
from fxquant.graph.rewriter import Rewriter

_KEY = "fxquant"


class Fact(enum.Enum):
    """What may be relied on in a graph; exceptions are in the log of skips."""

    RECORDED = "nodes know the user's line, module path and value"
    UNIQUE_MODULES = "every module is called once"
    NO_WRITES = "no operation writes into a tensor that something else reads"
    MODULES_ONLY = "every tensor operation that has a row is a module"
    PLACED = "every tensor's grid has its one owner"


@dataclass(frozen=True)
class State:
    """What fxquant knows about a graph as a whole.

    Attributes:
        facts: what holds.
        specialisations: where recording had to assume something.
        skips: what passes left alone, and why.
        excluded: paths of modules that are kept whole.
        any_batch: whether the graph was seen to work at another batch size.
        training_only: paths of modules that do nothing in evaluation.
        why: reasons of decisions, by module path or node name.
        gone: what became of modules that passes replaced, by path.
        on_integers: whether the target computes an operator on integers, by module path or node
            name; operators that only move values are not in it.
        names: of the tensors in the state dict of the network that was recorded.
    """

    facts: frozenset[Fact] = frozenset()
    specialisations: tuple[Any, ...] = ()
    skips: tuple[Skip, ...] = ()
    excluded: tuple[str, ...] = ()
    why: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    any_batch: bool = True
    training_only: frozenset[str] = frozenset()
    gone: Mapping[str, Gone] = field(default_factory=dict)
    on_integers: Mapping[str, bool] = field(default_factory=dict)
    names: frozenset[str] = frozenset()


def state_of(gm: fx.GraphModule) -> State:
    """The state of a graph; an empty one for a graph that fxquant has not seen."""
    found = getattr(gm, "meta", {}).get(_KEY)
    return found if isinstance(found, State) else State()


def set_state(gm: fx.GraphModule, **changes: Any) -> None:
    """Change fields of a graph's state."""
    gm.meta[_KEY] = replace(state_of(gm), **changes)


class Outcome(PassResult):
    """Result of a pass: `graph_module`, `modified`, the number of `changes` and the `skips`."""

    changes: int = 0
    skips: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class Pass(PassBase):
    """Base of passes: a frozen dataclass with its options as fields and `run` as its work.

    Attributes:
        needs: facts that must hold before.
        gives: facts that hold afterwards.
        breaks: facts that no longer hold afterwards.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset()

    @property
    def name(self) -> str:
        """The pass in messages."""
        return type(self).__name__

    @abstractmethod
    def run(self, rw: Rewriter) -> None:
        """Edit the graph through `rw`."""

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Refuse a graph that is not ready.

        Raises:
            PassError: FXQ302, facts are missing.
        """
        missing = self.needs - state_of(graph_module).facts
        if missing:
            raise PassError(
                "FXQ302", f"{self.name} needs a graph in which {_say(missing)}", fix=_FIX_STATE
            )

    def __call__(self, graph_module: fx.GraphModule) -> Outcome:
        """Check that the graph is ready, then run on it in place."""
        self.requires(graph_module)
        return self.call(graph_module)

    def call(self, graph_module: fx.GraphModule) -> Outcome:
        """Run on a graph in place.

        Raises:
            PassError: FXQ306, the pass failed with an error that is none of fxquant's.
        """
        rw = Rewriter(graph_module, self.name)
        with _named(rw):
            self.run(rw)
            rw.finish()
        state = state_of(graph_module)
        facts = (state.facts - self.breaks) | self.gives
        why = {**state.why, **{k: state.why.get(k, ()) + v for k, v in rw.reasons.items()}}
        skips, gone = state.skips + tuple(rw.skips), {**state.gone, **rw.gone}
        set_state(graph_module, facts=facts, skips=skips, why=why, gone=gone)
        result = Outcome(graph_module, rw.changes > 0)
        result.changes, result.skips = rw.changes, tuple(rw.skips)
        return result


@contextmanager
def _named(rw: Rewriter) -> Iterator[None]:
    """Errors inside say which pass they come from, and at which node it was."""
    try:
        yield
    except FxQuantError as e:
        e.add_note(f"in the pass {rw.by}")
        raise
    except Exception as e:
        said = str(e).strip().split("\n")[0]
        raise PassError(
            "FXQ306",
            f"the pass {rw.by} failed: {type(e).__name__}{': ' if said else ''}{said}",
            at=rw.current,
            fix="this is a fault of the pass: report it with the traceback",
        ) from e


_FIX_STATE = "call prepare_model(model, dummy_input) first, or put the pass into a Pipeline"


@dataclass(frozen=True)
class Pipeline:
    """Passes in an order that was checked when the pipeline was built.

    Args:
        passes: the passes, first to last.
        given: facts that hold for the graphs it will be given.

    Raises:
        PassError: FXQ301, a pass needs a fact that nothing before it gives.

    Example:
        >>> from fxquant.graph.pass_infra import Fact, Pipeline
        >>> from fxquant.passes import PREPARE
        >>> Pipeline(PREPARE, given=frozenset({Fact.RECORDED})).gives >= {Fact.MODULES_ONLY}
        True
    """

    passes: tuple[Pass, ...]
    given: frozenset[Fact] = frozenset()
    gives: frozenset[Fact] = field(init=False)

    def __post_init__(self) -> None:
        facts = frozenset(self.given)
        for number, step in enumerate(self.passes):
            missing = step.needs - facts
            if missing:
                what = f"pass {number + 1} of the pipeline, {step.name}, needs that {_say(missing)}"
                raise PassError("FXQ301", what, fix=_advice(missing, self.passes[number + 1 :]))
            facts = (facts - step.breaks) | step.gives
        object.__setattr__(self, "gives", facts)

    def __call__(
        self, gm: fx.GraphModule, progress: Callable[[str], None] | None = None
    ) -> Outcome:
        """Run all passes on a graph in place.

        Raises:
            PassError: FXQ302, the graph lacks a given fact.
        """
        missing = self.given - state_of(gm).facts
        if missing:
            raise PassError(
                "FXQ302", f"the pipeline needs a graph in which {_say(missing)}", fix=_FIX_STATE
            )
        outcomes = []
        for step in self.passes:
            if progress:
                progress(step.name)
            outcomes.append(step(gm))
        result = Outcome(gm, any(o.modified for o in outcomes))
        result.changes = sum(o.changes for o in outcomes)
        result.skips = tuple(skip for o in outcomes for skip in o.skips)
        return result


def _say(facts: frozenset[Fact]) -> str:
    return " and ".join(sorted(f.value for f in facts))


def _advice(missing: frozenset[Fact], later: tuple[Pass, ...]) -> str:
    found = [p.name for p in later if p.gives & missing]
    if found:
        return f"{', '.join(found)} gives it: move it before"
    return "put a pass that gives it before, or state it in `given`"
