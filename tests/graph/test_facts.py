"""Facts are checked after every pass of every test; here each check sees a graph that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from fxquant import passes
from fxquant.graph.pass_infra import Fact, Pass, state_of
from fxquant.graph.rewriter import Rewriter
from fxquant.quantization import affine
from fxquant.sim import QuantizationSimModel
from tests.helpers.facts import CHECKS, imprint, problems
from tests.helpers.grids import output_of
from tests.helpers.nets import param_quantizers, prepared, simulated

X = torch.randn(2, 3)


class Net(nn.Module):
    """A layer, a function, a view, and a layer that reads it in integers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.end = nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.act(self.fc(x) + 1).flatten(1))  # type: ignore[no-any-return]


def calls(gm: fx.GraphModule) -> dict[str, fx.Node]:
    return {node.name: node for node in gm.graph.nodes}


def _forget(gm: fx.GraphModule) -> None:
    del calls(gm)["act"].meta["module_path"]


def _call_twice(gm: fx.GraphModule) -> None:
    gm.add_submodule("again", gm.get_submodule("act"))
    calls(gm)["add"].target = "again"


def _write(gm: fx.GraphModule) -> None:
    gm.act.inplace = True  # type: ignore[union-attr]


def _call_a_function(gm: fx.GraphModule) -> None:
    node = calls(gm)["act"]
    node.op, node.target = "call_function", torch.relu


@pytest.mark.parametrize(
    ("fact", "breaks", "says"),
    [
        (Fact.RECORDED, _forget, "act does not know its module_path"),
        (Fact.UNIQUE_MODULES, _call_twice, "add and act call one module"),
        (Fact.NO_WRITES, _write, "act writes into add"),
        (Fact.MODULES_ONLY, _call_a_function, "act calls relu, but no module"),
    ],
    ids=lambda value: value.name if isinstance(value, Fact) else None,
)
def test_a_prepared_graph(fact: Fact, breaks: Callable[[fx.GraphModule], None], says: str) -> None:
    gm = prepared(Net(), X)
    assert problems(gm) == []
    breaks(gm)
    assert [text.startswith(f"{fact.name}: {says}") for text in problems(gm)] == [True]


def _plain(sim: QuantizationSimModel) -> None:
    sim.model.set_submodule("fc", nn.Linear(3, 3))


def _second_grid(sim: QuantizationSimModel) -> None:
    sim.model.get_submodule("flatten").output_quantizers[0] = output_of(sim.model, "act")  # type: ignore[operator]


def _bias_of_another_input(sim: QuantizationSimModel) -> None:
    params = param_quantizers(sim.model, "fc")
    params["bias"] = affine.BiasQuantizeDequantize(output_of(sim.model, "act"), params["weight"])


def _another_weight(sim: QuantizationSimModel) -> None:
    param_quantizers(sim.model, "fc")["weight"] = affine.QuantizeDequantize((), bitwidth=8)


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (_plain, "fc is no quantized module"),
        (_second_grid, "flatten only moves values and has a grid beside that of act"),
        (_bias_of_another_input, "the bias of fc is on another grid than its input's"),
        (_another_weight, "the bias of fc is on another grid than its weight's"),
    ],
)
def test_a_simulated_graph(breaks: Callable[[QuantizationSimModel], None], says: str) -> None:
    sim = simulated(Net(), X)
    assert problems(sim.model) == []
    breaks(sim)
    assert problems(sim.model) == [f"PLACED: {says}"]


def exported() -> list[type[Pass]]:
    found = [getattr(passes, name) for name in passes.__all__]
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, Pass)]


def test_every_fact_has_a_check_and_somebody_who_needs_it() -> None:
    assert set(CHECKS) == set(Fact)
    needed = {fact for kind in exported() for fact in kind.needs}
    assert needed == set(Fact)


@dataclass(frozen=True)
class Lies(Pass):
    """Changes something behind the rewriter's back, or gives a fact that does not hold."""

    gives = frozenset({Fact.MODULES_ONLY})

    change: Callable[[fx.GraphModule], None]

    def run(self, rw: Rewriter) -> None:
        self.change(rw.gm)


@torch.no_grad()
def _scale(gm: fx.GraphModule) -> None:
    gm.fc.weight.mul_(2)  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_call_a_function, "after Lies:\nMODULES_ONLY: act calls relu"),
        (_scale, "Lies says that it changed nothing"),
        (_write, "Lies says that it changed nothing|NO_WRITES"),
        (lambda gm: gm.set_submodule("act", nn.Tanh()), "Lies says that it changed nothing"),
    ],
)
def test_a_pass_is_held_to_what_it_says(
    change: Callable[[fx.GraphModule], None], says: str
) -> None:
    gm = prepared(Net(), X)
    with pytest.raises(AssertionError, match=says):
        Lies(change)(gm)


def test_what_is_only_read_leaves_no_imprint() -> None:
    gm = prepared(Net(), X)
    before = imprint(gm)
    gm(X)
    assert imprint(gm) == before
    assert state_of(gm).facts == frozenset(Fact) - {Fact.PLACED}


def test_all_passes_are_exported_and_have_a_test_file() -> None:
    root = Path(__file__).parents[2]
    files = {p.stem for p in (root / "passes").glob("*.py")} - {"__init__"}
    tested = {p.stem.removeprefix("test_") for p in (root / "tests" / "passes").glob("test_*.py")}
    assert files == tested
    assert {kind.__module__.rpartition(".")[2] for kind in exported()} == files
