"""The rows of every group of a folded graph, each for itself: what is closed needs none.

An edge between two operators is drawn in every group that holds one of them: between two children
of the group that holds both, and from or to the border of the groups inside of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fxquant.inspection.folding import Child, FoldNode, Group, Leaf
from fxquant.inspection.layering import Rows, layered

_NO_ROWS = Rows((), (), ())


@dataclass(frozen=True)
class Box:
    """A child of a folded graph, and how its inside is laid out.

    Attributes:
        child: the operator or group.
        boxes: its children; empty for an operator.
        rows: of its children, by their number; the number behind the last one is the border above,
            the next one the border below. A stack shows one member at a time and has no rows.
    """

    child: Child
    boxes: tuple[Box, ...] = ()
    rows: Rows = _NO_ROWS


def boxes(root: Group, nodes: Sequence[FoldNode]) -> Box:
    """Lay out every group.

    Args:
        root: what `fold` made of the nodes.
        nodes: the operators.
    """
    edges: dict[int, set[tuple[int, int]]] = {}
    chains = [chain for _, chain in sorted(_chains(root, ()), key=lambda found: found[0])]
    places = {n.name: i for i, n in enumerate(nodes)}
    for consumer, node in enumerate(nodes):
        for name in node.inputs:
            _connect(chains[places[name]], chains[consumer], edges)
    return _box(root, edges)


_Chain = tuple[tuple[Group, int], ...]
"""Groups around an operator from the root on, each with the number of the child to go on with."""


def _chains(group: Group, above: _Chain) -> Iterator[tuple[int, _Chain]]:
    for i, child in enumerate(group.children):
        chain = (*above, (group, i))
        if isinstance(child, Leaf):
            yield child.first, chain
        else:
            yield from _chains(child, chain)


def _connect(producer: _Chain, consumer: _Chain, edges: dict[int, set[tuple[int, int]]]) -> None:
    shared = 0
    while producer[shared] == consumer[shared]:
        shared += 1
    group, start = producer[shared]
    _, end = consumer[shared]
    edges.setdefault(id(group), set()).add((start, end))
    for inner, child in producer[shared + 1 :]:
        edges.setdefault(id(inner), set()).add((child, len(inner.children) + 1))
    for inner, child in consumer[shared + 1 :]:
        edges.setdefault(id(inner), set()).add((len(inner.children), child))


def _box(child: Child, edges: dict[int, set[tuple[int, int]]]) -> Box:
    if isinstance(child, Leaf):
        return Box(child)
    inside = tuple(_box(c, edges) for c in child.children)
    if child.kind == "stack":
        return Box(child, inside)
    return Box(child, inside, layered(len(inside) + 2, edges.get(id(child), ())))
