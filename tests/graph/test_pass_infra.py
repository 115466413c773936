"""Facts: the order of passes is checked when a pipeline is built."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_manager import PassManager

from fxquant.errors import ConfigError, PassError
from fxquant.graph.pass_infra import Fact, Pass, Pipeline, set_state, state_of
from fxquant.graph.rewriter import Rewriter
from fxquant.passes import PREPARE
from tests.helpers.golden import recorded

X = torch.randn(2, 3)


@dataclass(frozen=True)
class Give(Pass):
    """Gives one fact and breaks another."""

    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_WRITES})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.MODULES_ONLY})

    reason: str = "nothing to do"

    def run(self, rw: Rewriter) -> None:
        rw.skip(rw.output, self.reason)
        rw.explain(rw.output, self.reason)


@dataclass(frozen=True)
class Need(Pass):
    """Needs what `Give` gives, and changes something."""

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_WRITES})

    def run(self, rw: Rewriter) -> None:
        rw.add_module("", "extra", nn.ReLU())


def graph() -> fx.GraphModule:
    return recorded(nn.Sequential(nn.ReLU()), X)


def test_a_wrong_order_cannot_be_built() -> None:
    with pytest.raises(PassError, match=r"(?s)FXQ301: pass 1 of the pipeline, Need.*Give gives it"):
        Pipeline((Need(), Give()))
    with pytest.raises(PassError, match=r"(?s)FXQ301.*state it in `given`"):
        Pipeline((Need(),))


def test_facts_are_added_up() -> None:
    given = frozenset({Fact.RECORDED, Fact.MODULES_ONLY})
    assert Pipeline((Give(), Need()), given).gives == {Fact.RECORDED, Fact.NO_WRITES}
    assert Pipeline(PREPARE, given).gives >= {Fact.MODULES_ONLY, Fact.NO_WRITES}


def test_a_graph_that_is_not_ready_is_refused() -> None:
    with pytest.raises(PassError, match="FXQ302: Need needs"):
        Need()(graph())
    with pytest.raises(PassError, match="FXQ302: the pipeline needs"):
        Pipeline((Need(),), frozenset({Fact.NO_WRITES}))(graph())


def test_a_run_leaves_facts_skips_and_reasons() -> None:
    gm = graph()
    seen: list[str] = []
    outcome = Pipeline((Give("one"), Give("two"), Need()))(gm, seen.append)
    assert seen == ["Give", "Give", "Need"]
    assert (outcome.modified, outcome.changes) == (True, 1)
    assert [s.reason for s in outcome.skips] == ["one", "two"]
    state = state_of(gm)
    assert state.facts == {Fact.RECORDED, Fact.NO_WRITES}
    assert state.skips == outcome.skips
    assert state.why == {"output": ("one", "two")}


def test_a_pass_that_only_looks_modifies_nothing() -> None:
    gm = graph()
    code = gm.code
    assert not Give()(gm).modified
    assert gm.code == code


def test_the_state_travels_with_copies() -> None:
    gm = graph()
    set_state(gm, any_batch=False)
    assert state_of(copy.deepcopy(gm)) == state_of(gm)
    assert state_of(fx.symbolic_trace(nn.ReLU())).facts == frozenset()


def test_passes_are_frozen_and_fit_torchs_pass_manager() -> None:
    step = Give()
    with pytest.raises(FrozenInstanceError):
        step.reason = "x"  # type: ignore[misc]
    assert PassManager(passes=[Give(), Need()])(graph()).modified


@dataclass(frozen=True)
class Fail(Pass):
    """Raises an error at the second node."""

    error: Exception

    def run(self, rw: Rewriter) -> None:
        for node in rw.nodes:
            list(rw.nodes)  # a walk inside of a walk
            if rw.module(node) is not None:
                raise self.error


def test_an_error_of_any_kind_names_the_pass_and_the_node() -> None:
    cause = KeyError("weight\nand more")
    with pytest.raises(PassError, match=r"(?s)FXQ306: the pass Fail failed: KeyError: ") as caught:
        Fail(cause)(graph())
    assert caught.value.__cause__ is cause
    assert str(caught.value.at).startswith("_0 (0)")


def test_an_error_of_ours_keeps_its_code_and_names_the_pass() -> None:
    ours = ConfigError("FXQ222", "there is no operator 'rleu'")
    with pytest.raises(ConfigError) as caught:
        Fail(ours)(graph())
    assert caught.value is ours
    assert caught.value.__notes__ == ["in the pass Fail"]


def test_where_a_walk_is() -> None:
    rw = Rewriter(graph())
    seen = [rw.current for _ in reversed(rw.nodes)]
    assert seen == list(rw.nodes)[::-1]
    assert rw.current is None, "the walk is over"
