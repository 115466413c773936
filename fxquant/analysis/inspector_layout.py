"""Layers for pictures of graphs: where boxes and edges go, without a Graphviz.

Every box goes one layer below the lowest box that it reads. Edges over several layers are led
through points of their own, so that they pass beside boxes. The order in a layer is that of the
mean positions of neighbours, from above and from below in turn (Sugiyama et al. 1981).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_SWEEPS = 4


@dataclass(frozen=True)
class Point:
    """Middle of a box or of a bend, in pixels."""

    x: float
    y: float


@dataclass
class Layout:
    """Where everything is.

    Attributes:
        boxes: middle of every box.
        edges: (from, to, points in between).
        width: of the picture.
        height: of the picture.
    """

    boxes: dict[str, Point] = field(default_factory=dict)
    edges: list[tuple[str, str, list[Point]]] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0


def lay_out(
    names: Sequence[str], inputs: Mapping[str, Iterable[str]], *, box: tuple[float, float],
    gap: tuple[float, float], bend: float = 18.0,
) -> Layout:  # fmt: skip
    """Lay out a graph from top to bottom.

    Args:
        names: boxes; what a box reads comes before it.
        inputs: box -> boxes that it reads.
        box: width and height of a box.
        gap: space between boxes, and between layers.
        bend: width that an edge takes in a layer it passes.
    """
    work = _Layers(names, inputs)
    work.order()
    widths = {n: bend if n in work.bends else box[0] for n in work.layer}
    xs = _positions(work, widths, gap[0])
    left = min((xs[n] - widths[n] / 2 for n in xs), default=0.0)
    made = Layout()
    points = {
        n: Point(xs[n] - left + gap[0], gap[1] + box[1] / 2 + work.layer[n] * (box[1] + gap[1]))
        for n in work.layer
    }
    made.boxes = {n: points[n] for n in names}
    made.edges = [(a, b, [points[p] for p in chain]) for a, b, chain in work.chains]
    made.width = max((p.x + widths[n] / 2 for n, p in points.items()), default=0.0) + gap[0]
    made.height = max((p.y for p in points.values()), default=0.0) + box[1] / 2 + gap[1]
    return made


class _Layers:
    """Layers and the order in them."""

    def __init__(self, names: Sequence[str], inputs: Mapping[str, Iterable[str]]) -> None:
        self.layer: dict[str, int] = {}
        self.bends: set[str] = set()
        self.above: dict[str, list[str]] = {}
        self.below: dict[str, list[str]] = {}
        self.chains: list[tuple[str, str, list[str]]] = []
        for name in names:
            before = [self.layer[i] for i in inputs.get(name, ())]
            self.layer[name] = 1 + max(before, default=-1)
        for name in names:
            for producer in inputs.get(name, ()):
                self._connect(producer, name)
        self.rows: list[list[str]] = [[] for _ in range(1 + max(self.layer.values(), default=-1))]
        for name, level in self.layer.items():
            self.rows[level].append(name)

    def _connect(self, producer: str, consumer: str) -> None:
        chain, last = [], producer
        for level in range(self.layer[producer] + 1, self.layer[consumer]):
            bend = f"{producer}>{consumer}@{level}"
            self.layer[bend] = level
            self.bends.add(bend)
            chain.append(bend)
            self._edge(last, bend)
            last = bend
        self._edge(last, consumer)
        self.chains.append((producer, consumer, chain))

    def _edge(self, producer: str, consumer: str) -> None:
        self.below.setdefault(producer, []).append(consumer)
        self.above.setdefault(consumer, []).append(producer)

    def order(self) -> None:
        """Sort every layer by the mean places of neighbours."""
        for sweep in range(_SWEEPS):
            down = sweep % 2 == 0
            neighbours = self.above if down else self.below
            rows = self.rows if down else list(reversed(self.rows))
            place: dict[str, float] = {}
            for row in rows:
                key = {n: _mean(neighbours.get(n, ()), place, i) for i, n in enumerate(row)}
                row.sort(key=key.__getitem__)
                place.update((n, float(i)) for i, n in enumerate(row))


def _mean(neighbours: Iterable[str], place: Mapping[str, float], default: float) -> float:
    found = [place[n] for n in neighbours if n in place]
    return sum(found) / len(found) if found else default


def _positions(work: _Layers, widths: Mapping[str, float], gap: float) -> dict[str, float]:
    """Middles of boxes: near their neighbours, in their order and apart from each other."""
    xs: dict[str, float] = {}
    for row in work.rows:
        wanted = [_mean(work.above.get(n, ()), xs, 0.0) for n in row]
        xs.update(_apart(row, wanted, widths, gap))
    for rows, neighbours in ((reversed(work.rows), work.below), (iter(work.rows), work.above)):
        for row in rows:
            wanted = [_mean(neighbours.get(n, ()), xs, xs[n]) for n in row]
            xs.update(_apart(row, wanted, widths, gap))
    return xs


def _apart(
    row: Sequence[str], wanted: Sequence[float], widths: Mapping[str, float], gap: float
) -> dict[str, float]:
    """The wanted places, pushed apart; the row as a whole stays where it wants to be."""
    found: list[float] = []
    for i, name in enumerate(row):
        least = wanted[i]
        if found:
            space = (widths[row[i - 1]] + widths[name]) / 2 + gap
            least = max(least, found[-1] + space)
        found.append(least)
    drift = sum(f - w for f, w in zip(found, wanted, strict=True)) / max(1, len(row))
    return {name: x - drift for name, x in zip(row, found, strict=True)}
