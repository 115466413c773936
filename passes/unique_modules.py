"""Give every call its own module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fxquant.graph.pass_infra import Fact, Pass
from fxquant.graph.recorded_module import shared_copy

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class UniqueModules(Pass):
    """Every call gets a module of its own; what is learned or counted stays shared.

    Before::

        %act   = relu[act](%x)
        %act_1 = relu[act](%act)

    After::

        %act   = relu[act](%x)
        %act_1 = relu[act_1](%act)

    The first call keeps the module and its name. Further calls get a copy of their own: same class,
    training flag and hooks, the *same* parameters and buffers (a batch norm's running statistics
    too).
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.RECORDED})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_MODULES})

    def run(self, rw: Rewriter) -> None:
        """Walk the calls in order."""
        called: set[int] = set()
        for node in rw.nodes:
            module = rw.module(node)
            if module is None:
                continue
            if id(module) in called:
                scope, _, name = str(node.target).rpartition(".")
                module = shared_copy(module)
                rw.retarget(node, rw.add_module(scope, name, module))
            called.add(id(module))
