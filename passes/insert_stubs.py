"""Boundaries around chosen nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fxquant.graph.pass_infra import Fact, Pass
from fxquant.nn import DeQuantStub, QuantStub
from fxquant.placement.dataflow import is_float_spec

if TYPE_CHECKING:
    from torch import fx

    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class InsertStubs(Pass):
    """Put a QuantStub on every value that enters the chosen nodes, a DeQuantStub on what leaves.

    Before: `x -> a -> b -> c` with `a` and `c` chosen.
    After: `x -> QuantStub -> a -> DeQuantStub -> b -> QuantStub -> c -> DeQuantStub`.

    Attributes:
        nodes: names of the chosen nodes.
    """

    needs = frozenset({Fact.MODULES_ONLY})

    nodes: frozenset[str] = field(default_factory=frozenset)

    def run(self, rw: Rewriter) -> None:
        """Stub every edge between chosen and other nodes; one stub a value."""
        for node in rw.nodes:
            if node.op == "get_attr" or not is_float_spec(node.meta.get("spec")):
                continue
            users = list(node.users)
            if node.name in self.nodes:
                outside = [u for u in users if u.name not in self.nodes]
                self._boundary(rw, node, outside, DeQuantStub(), "dequant")
            else:
                inside = [u for u in users if u.name in self.nodes]
                self._boundary(rw, node, inside, QuantStub(), "quant")

    def _boundary(
        self, rw: Rewriter, node: fx.Node, consumers: list[fx.Node], stub: QuantStub | DeQuantStub,
        name: str,
    ) -> None:  # fmt: skip
        if not consumers:
            return
        stub.inserted = True  # these boundaries are what was asked for, whatever skips over them
        with rw.after(node):
            made = rw.new_module(stub, node, like=node, name=f"{name}_{node.name}")
        rw.redirect(node, made, consumers)
