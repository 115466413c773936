"""Let sorts keep the order of equal values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fxquant.graph.pass_infra import Fact, Pass

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter


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
            sorts = row is not None and "stable" in row.signature.parameters
            if node.op == "call_module" and sorts:
                rw.set_argument(node, "stable", True)
