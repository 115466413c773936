"""What each operator of a simulated graph is computed with: integers, or floats and why.

The answer is read from the grids that stand in the graph now, not from the plan of the placement:
precisions may have been changed and layers excluded since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fxquant import ops
from fxquant.graph.pass_infra import state_of
from fxquant.graph.rewriter import label
from fxquant.nn.stubs import DeQuantStub, QuantStub
from fxquant.placement.dataflow import operands
from fxquant.precision.requests import float_reason
from fxquant.precision.sites import find_sites, integer_nodes

if TYPE_CHECKING:
    from torch import fx

    from fxquant.precision.sites import Sites
    from fxquant.quantization import QuantizerBase
    from fxquant.targets import Target

    Grids = dict[fx.Node, tuple[QuantizerBase | None, ...]]

INTEGER, FLOAT, MOVES, BOUNDARY = "integer", "float", "moves", "boundary"
# what the placement says of an operator that it takes, and of one that another's kernel takes in
_PLANNED, _INSIDE = "is computed in integers on", "it is computed inside the kernel of"


class Kernel(NamedTuple):
    """What computes an operator.

    Attributes:
        kind: "integer"; "float"; "moves", which only moves values; or "boundary", a stub at which
            values change between integers and floats.
        name: what the target is known to run, such as "QLinearConv", or else the kind; for what is
            computed inside of another operator's kernel, that operator: "in conv1".
        reason: why it is in floating point; empty where it is not.
    """

    kind: str
    name: str
    reason: str = ""


def kernels_of(gm: fx.GraphModule, target: Target, grids: Grids) -> dict[fx.Node, Kernel]:
    """What the target computes each operator of a simulated graph with, by its rules.

    Args:
        gm: the simulated graph, calibrated or not.
        target: what it is quantized for.
        grids: its grids, of `resolve_grids`.
    """
    sites = find_sites(gm)
    judge = _Judge(gm, target, sites, set(integer_nodes(gm, target, sites)), grids)
    found: dict[fx.Node, Kernel] = {}
    for node in gm.graph.nodes:
        if ops.row_of(node, gm) is not None or node.op == "call_module":
            found[node] = judge.of(node, found)
    return found


class _Judge:
    def __init__(
        self, gm: fx.GraphModule, target: Target, sites: Sites, integers: set[fx.Node], grids: Grids
    ) -> None:
        self.gm, self.target, self.sites, self.grids = gm, target, sites, grids
        self.integers = integers
        self.why = state_of(gm).why

    def of(self, node: fx.Node, before: dict[fx.Node, Kernel]) -> Kernel:
        """The kernel of a node, when those before it are known."""
        row = ops.row_of(node, self.gm)
        if row is None:
            return self._of_module(node)
        given = ops.arguments(node, self.gm)
        if row.grid_for(given) is ops.Grid.SAME:
            return Kernel(MOVES, MOVES)
        if node in self.integers:
            reason = self._of_rule(node, row.name)
            return Kernel(FLOAT, FLOAT, reason) if reason else Kernel(INTEGER, INTEGER)
        head = self._head(node, row.name, before)
        if head is not None:
            return Kernel(before[head].kind, f"in {label(head)}", before[head].reason)
        return Kernel(FLOAT, FLOAT, self._float_reason(node, row))

    def _of_module(self, node: fx.Node) -> Kernel:
        module = self.gm.get_submodule(str(node.target))
        if isinstance(module, (QuantStub, DeQuantStub)):
            return Kernel(BOUNDARY, BOUNDARY)
        kind = getattr(type(module), "float_class", type(module)).__name__
        return Kernel(FLOAT, FLOAT, f"{kind} is no operator that a target knows")

    def _of_rule(self, node: fx.Node, name: str) -> str:
        if self.target.operators[name].kernel == "float":
            return f"{self.target.name} stores its weight as integers and computes it in floats"
        return float_reason(
            self.target, self.sites.reads.get(node, []), self.sites.weights.get(node, [])
        )

    def _head(self, node: fx.Node, name: str, before: dict[fx.Node, Kernel]) -> fx.Node | None:
        """The operator in whose kernel this one is computed, or None."""
        source = next((n for _, n in operands(node, self.gm)), None)
        kernel = before.get(source) if source is not None else None
        if source is None or kernel is None or len(source.users) != 1:
            return None
        row = ops.row_of(source, self.gm)
        if row is None or self.grids[source][0] is not None:
            return None
        if kernel.kind == INTEGER and self.grids[node][0] is None:  # then it is no end of a kernel
            return None
        chains = {operator for group in self.target.supergroups for operator in group[1:]}
        takes = name in chains or name in row.absorbs.intersection(self.target.absorbs)
        return source if takes else None

    def _float_reason(self, node: fx.Node, row: ops.Op) -> str:
        said = self.why.get(label(node), ())
        if said and not any(_PLANNED in t or _INSIDE in t for t in said):
            return said[0]
        rule = self.target.operators.get(row.name)
        if rule is None:
            return f"{row.name} is computed in floating point on {self.target.name}"
        violation = rule.violation(ops.arguments(node, self.gm))
        if violation is not None:
            return str(violation)
        return self._what_is_float(node, said)

    def _what_is_float(self, node: fx.Node, said: tuple[str, ...]) -> str:
        """Which value of an operator that was planned in integers is in floating point now."""
        if said and not said[-1].startswith("its ") and _PLANNED not in said[-1]:
            return said[-1]
        floats = [n for _, n in operands(node, self.gm) if self.grids[n][0] is None]
        if floats:
            return f"it reads floating point from {label(floats[0])}"
        weighted = getattr(self.gm.get_submodule(str(node.target)), "weight", None) is not None
        if weighted and not self.sites.weights.get(node):
            return "its weight is in floating point"
        return "its output has no grid"
