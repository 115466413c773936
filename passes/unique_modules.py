"""Give every call its own module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fxquant.graph.passes import Fact, Pass
from fxquant.graph.share import twin

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

    The first call keeps the module and its name. Further calls get a twin: same class, training
    flag and hooks, the *same* parameters and buffers (a batch norm's running statistics too).
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.RECORDED})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_MODULES})

    def run(self, rw: Rewriter) -> None:
        """Walk the calls in order."""
        called_modules: set[int] = set()
        called_paths: set[str] = set()
        for node in rw.nodes:
            module = rw.module(node)
            if module is None:
                continue
            path = str(node.target)
            if path in called_paths:
                scope, _, name = path.rpartition(".")
                path = rw.add_module(scope, name, twin(module))
                rw.retarget(node, path)
            elif id(module) in called_modules:
                # one module under two names: the second name gets the twin
                rw.set_module(path, twin(module))
            called_paths.add(path)
            called_modules.add(id(rw.module(node)))
