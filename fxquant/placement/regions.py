"""Quantized regions: what lies on the paths from a `QuantStub` call to a `DeQuantStub`.

networkx is imported where it is needed: it is slow to import, and most models have no stubs.

Each call of a stub is a boundary of its own, whether or not the object is used again. What is wrong
with the boundaries is found here, on the graph, before anything is placed.

    x ─ QuantStub ─ conv ─ relu ─ DeQuantStub ─ y        conv and relu are inside
                       └──────── conv2 ─ z              a leak: conv2 reads integers, no end follows
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import fx

from fxquant.errors import RegionError, place
from fxquant.placement.dataflow import is_float_spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import networkx as nx
    from torch import nn


Flow: TypeAlias = "nx.DiGraph[fx.Node]"

_BEGIN, _END = "QuantStub", "DeQuantStub"


@dataclass(frozen=True)
class Regions:
    """Boundaries and insides.

    Attributes:
        begins: stub calls where values become integers.
        ends: stub calls where they become floats.
        inside: the nodes between them.
        number: region of every begin, end and inner node, counted from 1 in the order of the graph.
    """

    begins: frozenset[fx.Node]
    ends: frozenset[fx.Node]
    inside: frozenset[fx.Node]
    number: dict[fx.Node, int] = field(default_factory=dict)

    def holds(self, node: fx.Node) -> bool:
        """Whether a node computes inside a region."""
        return node in self.inside


def find_regions(gm: fx.GraphModule) -> Regions | None:
    """The regions of a graph, or None for a graph without stubs, which is quantized as a whole.

    Raises:
        RegionError: FXQ160 a region has no end, FXQ161 an end has no beginning, FXQ162 a region
            begins inside another, FXQ163 a quantized value leaks past its region's end, FXQ164 a
            quantized value skips over an end into another region.
    """
    begins, ends = _stubs(gm, _BEGIN), _stubs(gm, _END)
    if not begins and not ends:
        return None
    flow = _flow(gm)
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    open_ = _without(flow, after=ends)
    _check_begins(sorted(begins, key=order.__getitem__), ends, open_)
    reached = _reach(open_, begins)
    _check_ends(sorted(ends, key=order.__getitem__), reached)
    back = _without(flow, after=ends, into=begins).reverse()
    before_end = _reach(back, ends) - ends
    inside = (reached & before_end) - begins - ends
    _check_leaks(sorted(reached - begins - ends, key=order.__getitem__), inside, begins)
    number = _numbers(flow, begins, ends, inside, order)
    _check_skips(gm, flow, Regions(begins, ends, inside, number))
    return Regions(begins, ends, inside, number)


def _stubs(gm: fx.GraphModule, kind: str) -> frozenset[fx.Node]:
    return frozenset(n for n in gm.graph.nodes if n.op == "call_module" and _is(gm, n, kind))


def _is(gm: fx.GraphModule, node: fx.Node, kind: str) -> bool:
    module: nn.Module = gm.get_submodule(str(node.target))
    return any(c.__name__ == kind for c in type(module).__mro__)


def _flow(gm: fx.GraphModule) -> Flow:
    """Edges from producers to consumers of floating-point tensors; constants are no part of it."""
    import networkx as nx

    flow: Flow = nx.DiGraph()
    flow.add_nodes_from(gm.graph.nodes)
    for node in gm.graph.nodes:
        if node.op != "get_attr" and _carries_floats(node):
            flow.add_edges_from((node, user) for user in node.users)
    return flow


def _carries_floats(node: fx.Node) -> bool:
    """Whether a node's value is or holds a floating-point tensor; sizes leak nothing."""
    return any(is_float_spec(part) for part in _parts(node.meta.get("spec")))


def _parts(spec: Any) -> Iterator[Any]:
    """Leaves of a recorded value; a tensor's own description is a tuple and stays whole."""
    if hasattr(spec, "dtype") or not isinstance(spec, tuple | list | dict):
        yield spec
        return
    for part in spec.values() if isinstance(spec, dict) else spec:
        yield from _parts(part)


def _without(
    flow: Flow, *, after: frozenset[fx.Node], into: frozenset[fx.Node] = frozenset()
) -> Flow:
    """The graph without the edges that leave some nodes or enter others."""
    import networkx as nx

    kept: Flow = nx.DiGraph()
    kept.add_nodes_from(flow)
    kept.add_edges_from((a, b) for a, b in flow.edges if a not in after and b not in into)
    return kept


def _reach(flow: Flow, starts: Iterable[fx.Node]) -> frozenset[fx.Node]:
    """The starts and all that they lead to."""
    found = set(starts)
    waiting = list(found)
    while waiting:
        new = [n for n in flow.successors(waiting.pop()) if n not in found]
        found.update(new)
        waiting += new
    return frozenset(found)


def _check_begins(begins: list[fx.Node], ends: frozenset[fx.Node], open_: Flow) -> None:
    """Every region has an end, and none begins inside another."""
    known = frozenset(begins)
    single = _without(open_, after=frozenset(), into=known)
    for begin in begins:
        within = _reach(single, [begin])
        entered = (b for n in within for b in open_.successors(n) if b in known)
        for node in entered:
            raise RegionError(
                "FXQ162",
                f"a QuantStub lies inside the region that begins at {place(begin)}",
                at=node,
                fix="end the outer region with a DeQuantStub before, or take this QuantStub out",
            )
    # backwards from the ends, so that many regions cost one walk
    closed = _reach(open_.reverse(copy=False), ends)
    for begin in begins:
        if begin not in closed:
            raise RegionError(
                "FXQ160",
                "the region that begins here has no end: no DeQuantStub follows",
                at=begin,
                fix="call a DeQuantStub on the last value of the region",
            )


def _check_ends(ends: list[fx.Node], reached: frozenset[fx.Node]) -> None:
    for end in ends:
        if end not in reached:
            raise RegionError(
                "FXQ161",
                "this DeQuantStub ends no region: no QuantStub comes before it",
                at=end,
                fix="call a QuantStub on the values that enter the region, or take this one out",
            )


def _check_leaks(
    reached: list[fx.Node], inside: frozenset[fx.Node], begins: frozenset[fx.Node]
) -> None:
    for node in reached:
        if node in inside or not (node.op == "output" or _carries_floats(node)):
            continue
        producers = [i for i in node.all_input_nodes if i in inside or i in begins]
        if producers:
            where = "the graph returns it" if node.op == "output" else f"{place(node)} reads it"
            raise RegionError(
                "FXQ163",
                f"the quantized value of {place(producers[0])} leaks past the end of its "
                f"region: {where}",
                at=node,
                fix="let it be read through a DeQuantStub",
            )


def _numbers(
    flow: Flow, begins: frozenset[fx.Node], ends: frozenset[fx.Node], inside: frozenset[fx.Node],
    order: dict[fx.Node, int],
) -> dict[fx.Node, int]:  # fmt: skip
    """Regions are what hangs together without passing an end."""
    import networkx as nx

    part = _without(flow, after=ends, into=begins).subgraph(begins | ends | inside)
    groups = sorted(
        nx.weakly_connected_components(part), key=lambda group: min(order[n] for n in group)
    )
    return {node: i for i, group in enumerate(groups, 1) for node in group}


def _check_skips(gm: fx.GraphModule, flow: Flow, regions: Regions) -> None:
    """A region must not be entered again behind one of its own ends.

    Regions that `insert_stubs` made are what was asked for: there a value may skip.
    """
    import networkx as nx

    number = regions.number
    # every region as one node, boundary joins left out: a cycle is a region behind itself
    whole = nx.DiGraph()
    for a, b in flow.edges:
        ends_at = number.get(b, b)
        entered = b in number and a not in number and b not in regions.begins
        if not entered and number.get(a, a) != ends_at:
            whole.add_edge(number.get(a, a), ends_at)
    for group in nx.strongly_connected_components(whole):
        again = [b for b in regions.begins if len(group) > 1 and number[b] in group]
        if len(again) < 2 or any(_is_inserted(gm, b) for b in again):
            continue
        last = max(again, key=list(gm.graph.nodes).index)
        producer, consumer = _skip(flow, regions, last)
        raise RegionError(
            "FXQ164",
            f"the quantized value of {place(producer)} skips over the end of its region into the "
            f"one that begins at {place(last)}",
            at=consumer,
            fix="let the skip pass through a DeQuantStub: it is quantized again at the boundary",
        )


def _is_inserted(gm: fx.GraphModule, begin: fx.Node) -> bool:
    return bool(getattr(gm.get_submodule(str(begin.target)), "inserted", False))


def _skip(flow: Flow, regions: Regions, begin: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The edge by which a value enters the middle of the region behind `begin`."""
    behind = _reach(_without(flow, after=regions.ends), [begin])
    inner = regions.inside | regions.begins
    order = {node: i for i, node in enumerate(flow)}
    for node in sorted(behind - {begin}, key=order.__getitem__):
        for producer in node.all_input_nodes:
            if producer in inner and producer not in behind:
                return producer, node
    return begin, begin
