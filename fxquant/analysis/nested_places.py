"""Places of the boxes of a folded graph, of which some groups are open: for pictures on paper.

From the inside to the outside: the size of an open group is that of what it holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fxquant.inspection.folding import Leaf
from fxquant.inspection.nested_rows import Box

LEAF, CLOSED = (184.0, 44.0), (200.0, 62.0)
_GAP = (22.0, 28.0)
_BEND, _PAD, HEAD = 12.0, 16.0, 34.0
_LOW_ROW = 12.0  # of a border alone


@dataclass
class Placed:
    """Where a box is, and what it holds when it is open.

    Attributes:
        box: the box.
        x: of its left side, from the left side of what it lies in.
        y: of its upper side.
        width: of the box.
        height: of the box.
        inside: what it shows; empty for operators and closed groups.
        ways: lines between boxes inside: points, of which the first and the last are at boxes.
    """

    box: Box
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0
    inside: list[Placed] = field(default_factory=list)
    ways: list[list[tuple[float, float, float]]] = field(default_factory=list)


def opened(root: Box, tallest: float = 1500.0) -> set[int]:
    """Which groups to open, by `id`: the largest ones first, as long as the picture fits a page."""
    found = {id(root)}
    waiting = [b for b in _shown_of(root) if b.boxes]
    while waiting:
        group = max(waiting, key=lambda b: b.child.last - b.child.first)
        waiting.remove(group)
        if place(root, found | {id(group)}).height <= tallest:
            found.add(id(group))
            waiting += [b for b in _shown_of(group) if b.boxes]
    return found


def _shown_of(box: Box) -> tuple[Box, ...]:
    """Children of a group; of a stack those of its first member, which stands for all."""
    inside = box.boxes
    if not isinstance(box.child, Leaf) and box.child.kind == "stack":
        return inside[0].boxes
    return inside


def place(box: Box, is_open: set[int]) -> Placed:
    """Lay out a box and what it holds."""
    made = Placed(box)
    if isinstance(box.child, Leaf) or id(box) not in is_open:
        made.width, made.height = LEAF if isinstance(box.child, Leaf) else CLOSED
        return made
    rows = box.boxes[0].rows if box.child.kind == "stack" else box.rows
    inner = [place(b, is_open) for b in _shown_of(box)]
    count = len(inner)
    used = {n for a, b, _ in rows.edges for n in (a, b)}
    lines = [[n for n in row if n < count or n > count + 1 or n in used] for row in rows.rows]
    lines = [line for line in lines if line]
    widths = {n: inner[n].width if n < count else _BEND for line in lines for n in line}
    chains = [[a, *bends, b] for a, b, bends in rows.edges]
    xs = _middles(lines, widths, chains)
    left = min((xs[n] - widths[n] / 2 for n in xs), default=0.0)
    right = max((xs[n] + widths[n] / 2 for n in xs), default=0.0)
    made.width = max(right - left + 2 * _PAD, 9.0 * len(box.child.label) + 90.0)
    shift = (made.width - (right - left)) / 2 - left
    y, spots = HEAD, {}
    for line in lines:
        height = max((inner[n].height for n in line if n < count), default=0.0)
        for n in line:
            own = inner[n].height if n < count else height
            top = y + (height - own) / 2
            spots[n] = (xs[n] + shift, top, top + own)
            if n < count:
                inner[n].x, inner[n].y = xs[n] + shift - widths[n] / 2, top
        y += height + (_GAP[1] if height else _LOW_ROW)
    made.height = y - _GAP[1] + _PAD + (_GAP[1] - _LOW_ROW if lines and not height else 0.0)
    made.inside, made.ways = inner, [[spots[n] for n in chain] for chain in chains]
    return made


def _middles(
    rows: Sequence[Sequence[int]], widths: Mapping[int, float], chains: Sequence[Sequence[int]]
) -> dict[int, float]:
    """Middles of boxes: near their neighbours, in their order and apart from each other."""
    above: dict[int, list[int]] = {}
    below: dict[int, list[int]] = {}
    for chain in chains:
        for a, b in itertools.pairwise(chain):
            below.setdefault(a, []).append(b)
            above.setdefault(b, []).append(a)
    xs: dict[int, float] = {}
    for neighbours, order in ((above, rows), (below, rows[::-1]), (above, rows)):
        for row in order:
            wanted = [_mean(neighbours.get(n, ()), xs, xs.get(n, 0.0)) for n in row]
            xs.update(_apart(row, wanted, widths))
    return xs


def _mean(neighbours: Sequence[int], xs: Mapping[int, float], default: float) -> float:
    found = [xs[n] for n in neighbours if n in xs]
    return sum(found) / len(found) if found else default


def _apart(
    row: Sequence[int], wanted: Sequence[float], widths: Mapping[int, float]
) -> dict[int, float]:
    """The wanted places, pushed apart; the row as a whole stays where it wants to be."""
    found: list[float] = []
    for i, n in enumerate(row):
        least = wanted[i]
        if found:
            least = max(least, found[-1] + (widths[row[i - 1]] + widths[n]) / 2 + _GAP[0])
        found.append(least)
    drift = sum(f - w for f, w in zip(found, wanted, strict=True)) / max(1, len(row))
    return {n: x - drift for n, x in zip(row, found, strict=True)}
