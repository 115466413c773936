"""Quantized regions: what lies on the paths from a `QuantStub` call to a `DeQuantStub`.

Each call of a stub is a border of its own, whether or not the object is used again. What is wrong
with the borders is found here, on the graph, before anything is placed.

    x ─ QuantStub ─ conv ─ relu ─ DeQuantStub ─ y        conv and relu are inside
                       └──────── conv2 ─ z               a leak: conv2 reads integers, no end follows
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx
from torch import fx

from fxquant.errors import RegionError, place

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

_BEGIN, _END = "QuantStub", "DeQuantStub"


@dataclass(frozen=True)
class Regions:
    """Borders and insides.

    Attributes:
        begins: stub calls where values become integers.
        ends: stub calls where they become floats.
        inside: the nodes between them.
    """

    begins: frozenset[fx.Node]
    ends: frozenset[fx.Node]
    inside: frozenset[fx.Node]

    def holds(self, node: fx.Node) -> bool:
        """Whether a node computes inside a region."""
        return node in self.inside


def find_regions(gm: fx.GraphModule) -> Regions | None:
    """The regions of a graph, or None for a graph without stubs, which is quantized as a whole.

    Raises:
        RegionError: FXQ160 a region has no end, FXQ161 an end has no beginning, FXQ162 a region
            begins inside another, FXQ163 a quantized value leaks past its region's end.
    """
    begins, ends = _stubs(gm, _BEGIN), _stubs(gm, _END)
    if not begins and not ends:
        return None
    flow = _flow(gm)
    after = {b: _after(flow, b, ends) for b in begins}
    _check_begins(begins, ends, flow, after)
    before_end = _before_ends(flow, begins, ends)
    reached = frozenset[fx.Node]().union(*after.values())
    _check_ends(ends, reached)
    _check_leaks(reached - ends, before_end, begins)
    return Regions(frozenset(begins), frozenset(ends), (reached & before_end) - begins - ends)


def _stubs(gm: fx.GraphModule, kind: str) -> frozenset[fx.Node]:
    return frozenset(
        n for n in gm.graph.nodes if n.op == "call_module" and _is(gm, n, kind)
    )


def _is(gm: fx.GraphModule, node: fx.Node, kind: str) -> bool:
    module: nn.Module = gm.get_submodule(str(node.target))
    return any(c.__name__ == kind for c in type(module).__mro__)


def _flow(gm: fx.GraphModule) -> nx.DiGraph[fx.Node]:
    """Edges from makers to readers; constants are no part of it."""
    flow: nx.DiGraph[fx.Node] = nx.DiGraph()
    for node in gm.graph.nodes:
        flow.add_node(node)
        flow.add_edges_from((i, node) for i in node.all_input_nodes if i.op != "get_attr")
    return flow


def _after(
    flow: nx.DiGraph[fx.Node], begin: fx.Node, ends: frozenset[fx.Node]
) -> frozenset[fx.Node]:
    """What a stub's values reach, up to and with the ends."""
    open_ = nx.subgraph_view(flow, filter_edge=lambda a, _: a not in ends)
    return frozenset(nx.descendants(open_, begin)) | {begin}


def _before_ends(
    flow: nx.DiGraph[fx.Node], begins: frozenset[fx.Node], ends: frozenset[fx.Node]
) -> frozenset[fx.Node]:
    """What leads to an end without passing another border."""
    back = nx.subgraph_view(
        flow, filter_edge=lambda a, b: a not in ends and (b not in begins)
    ).reverse()
    found: set[fx.Node] = set()
    for end in ends:
        found |= nx.descendants(back, end)
    return frozenset(found)


def _check_begins(
    begins: Iterable[fx.Node],
    ends: frozenset[fx.Node],
    flow: nx.DiGraph[fx.Node],
    after: dict[fx.Node, frozenset[fx.Node]],
) -> None:
    for begin in sorted(begins, key=list(flow).index):
        nested = [n for n in after[begin] if n in after and n is not begin]
        if nested:
            raise RegionError(
                "FXQ162",
                f"a QuantStub lies inside the region that begins at {place(begin)}",
                at=nested[0],
                fix="end the outer region with a DeQuantStub before, or take this QuantStub out",
            )
        if not after[begin] & ends:
            raise RegionError(
                "FXQ160",
                "the region that begins here has no end: no DeQuantStub follows",
                at=begin,
                fix="call a DeQuantStub on the last value of the region",
            )


def _check_ends(ends: Iterable[fx.Node], reached: frozenset[fx.Node]) -> None:
    for end in ends:
        if end not in reached:
            raise RegionError(
                "FXQ161",
                "this DeQuantStub ends no region: no QuantStub comes before it",
                at=end,
                fix="call a QuantStub on the values that enter the region, or take this one out",
            )


def _check_leaks(
    reached: frozenset[fx.Node], before_end: frozenset[fx.Node], begins: frozenset[fx.Node]
) -> None:
    for node in reached - begins:
        if node in before_end:
            continue
        makers = [i for i in node.all_input_nodes if i in before_end or i in begins]
        if makers:
            raise RegionError(
                "FXQ163",
                f"the quantized value of {place(makers[0])} leaks past the end of its region",
                at=node,
                fix=f"let {node.name} read the value through a DeQuantStub",
            )
