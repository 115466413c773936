"""Operators replaced by the simpler ones that a chip computes instead: on request only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx, nn

from fxquant.errors import PassError, place
from fxquant.graph.pass_infra import Fact, Pass, state_of

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter

_NOTE = "approximated: "
_SLOPE = 26 / 256  # the only slope of a leaky ReLU in the data path of DPU-like engines

_SIMPLER: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "relu6": ("relu", nn.ReLU),
    "silu": ("hardswish", nn.Hardswish),
    "sigmoid": ("hardsigmoid", nn.Hardsigmoid),
    "leaky_relu": (f"leaky_relu with slope {_SLOPE}", lambda: nn.LeakyReLU(_SLOPE)),
}


@dataclass(frozen=True)
class Approximate(Pass):
    """Replace activations by their approximations, and list them.

    Before: `conv2d -> silu`.
    After:  `conv2d -> hardswish`.

    Attributes:
        operators: names of rows that are replaced.
    """

    needs = frozenset({Fact.MODULES_ONLY, Fact.UNIQUE_MODULES})

    operators: tuple[str, ...] = ()

    def run(self, rw: Rewriter) -> None:
        """Swap the modules; paths stay.

        Raises:
            PassError: FXQ310, there is no approximation of an operator.
        """
        unknown = [name for name in self.operators if name not in _SIMPLER]
        if unknown:
            fix = f"approximated are {', '.join(_SIMPLER)}"
            raise PassError("FXQ310", f"there is no approximation of {unknown[0]}", fix=fix)
        for node in rw.nodes:
            row, module = rw.op(node), rw.module(node)
            if row is not None and module is not None and row.name in self.operators:
                self._replace(rw, node, row.name, module)

    def _replace(self, rw: Rewriter, node: fx.Node, name: str, module: nn.Module) -> None:
        text, make = _SIMPLER[name]
        if getattr(module, "negative_slope", None) == _SLOPE:
            return
        rw.set_module(str(node.target), make().train(module.training))
        rw.explain(node, f"{_NOTE}{name} became {text}, at {place(node)}")


def listed(gm: fx.GraphModule) -> tuple[str, ...]:
    """What was approximated in a graph, one line each."""
    reasons = (reason for found in state_of(gm).why.values() for reason in found)
    return tuple(r.removeprefix(_NOTE) for r in reasons if r.startswith(_NOTE))
