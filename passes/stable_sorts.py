"""Let sorts keep the order of equal values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fxquant.graph.pass_infra import Fact, Pass

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter

_SORTS = frozenset({"sort", "argsort", "topk"})


@dataclass(frozen=True)
class StableSorts(Pass):
    """Sorts become stable, as those of runtimes are.

    Before::

        %sort = sort[sort](%x)

    After::

        %sort = sort[sort](%x, stable=True)

    PyTorch may return the places of equal values in any order. ONNX gives the lower place first,
    and on a grid equal values are common.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.MODULES_ONLY})

    def run(self, rw: Rewriter) -> None:
        """Set the flag of every sort."""
        for node in rw.nodes:
            row = rw.op(node)
            if node.op == "call_module" and row is not None and row.name in _SORTS:
                rw.set_argument(node, "stable", True)
