"""Let modules that do nothing in evaluation count as dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fxquant.graph.passes import Fact, Pass
from fxquant.nn.functional import TrainingOnly

if TYPE_CHECKING:
    from torch import fx

    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class KeepTrainingModules(Pass):
    """A module of the user's that acts in training only is wrapped, so that placement knows it.

    Before::

        %drop_path = StochasticDepth[block.drop_path](%x)

    After::

        %drop_path = dropout[block.drop_path](%x)

    Attributes:
        paths: modules that recorded nothing in evaluation (`graph.training.training_only`).
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_MODULES})

    paths: frozenset[str] = frozenset()

    def run(self, rw: Rewriter) -> None:
        """Wrap what is called."""
        for node in rw.nodes:
            module = rw.module(node)
            if module is None or _first(str(node.target), self.paths) is None:
                continue
            reason = _objection(rw, node)
            if reason:
                rw.skip(node, reason)
            else:
                rw.set_module(str(node.target), TrainingOnly(module))
