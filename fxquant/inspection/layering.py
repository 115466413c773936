"""Rows for pictures of graphs: which boxes stand beside each other, and how edges pass them.

Every box stands one row below the lowest box that it reads. Edges over several rows are led through
points of their own, so that they pass beside boxes. The order in a row is that of the mean places
of neighbours, from above and from below in turn (Sugiyama, Tagawa and Toda, Methods for visual
understanding of hierarchical system structures, IEEE Trans. SMC 11 (1981)).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

_SWEEPS = 4
LONGEST = 12  # rows that an edge is led through; longer ones are named at both ends instead


@dataclass(frozen=True)
class Rows:
    """Boxes in rows.

    Attributes:
        rows: in each row, numbers of boxes; numbers beyond the last box are bends of edges.
        edges: (from, to, bends on the way); without the far ones.
        far: (from, to) of edges that are too long to be led through the picture.
    """

    rows: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[int, int, tuple[int, ...]], ...]
    far: tuple[tuple[int, int], ...]


def layered(count: int, edges: Iterable[tuple[int, int]]) -> Rows:
    """Lay boxes in rows from top to bottom.

    Args:
        count: number of boxes.
        edges: (from, to); they form no cycle.

    Example:
        >>> layered(3, [(0, 1), (1, 2), (0, 2)]).rows
        ((0,), (1, 3), (2,))
    """
    wanted = sorted(set(edges))
    graph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from(wanted)
    # from networkx: a generation holds what has all it reads in the generations before
    level = {n: i for i, row in enumerate(nx.topological_generations(graph)) for n in row}
    rows: list[list[int]] = [[] for _ in range(1 + max(level.values(), default=-1))]
    for node in range(count):
        rows[level[node]].append(node)
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    led, far, next_bend = [], [], count
    for producer, consumer in wanted:
        if level[consumer] - level[producer] > LONGEST:
            far.append((producer, consumer))
            continue
        bends = []
        for row in range(level[producer] + 1, level[consumer]):
            rows[row].append(next_bend)
            bends.append(next_bend)
            next_bend += 1
        led.append((producer, consumer, tuple(bends)))
        way = [producer, *bends, consumer]
        for a, b in itertools.pairwise(way):
            below.setdefault(a, []).append(b)
            above.setdefault(b, []).append(a)
    _order(rows, above, below)
    return Rows(tuple(map(tuple, rows)), tuple(led), tuple(far))


def _order(
    rows: list[list[int]], above: Mapping[int, Sequence[int]], below: Mapping[int, Sequence[int]]
) -> None:
    """Sort every row by the mean places of neighbours, each as a share of its row."""
    place = {n: _share(i, row) for row in rows for i, n in enumerate(row)}
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        neighbours = above if down else below
        for row in rows if down else reversed(rows):
            key = {n: _mean(neighbours.get(n, ()), place, place[n]) for n in row}
            row.sort(key=key.__getitem__)
            place.update((n, _share(i, row)) for i, n in enumerate(row))


def _share(i: int, row: Sequence[int]) -> float:
    return (i + 0.5) / len(row)


def _mean(neighbours: Sequence[int], place: Mapping[int, float], default: float) -> float:
    return sum(place[n] for n in neighbours) / len(neighbours) if neighbours else default
