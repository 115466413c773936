"""The picture of an inspection as SVG, folded as the report folds graphs: one page, any network.

Groups that do not fit are closed; a strip in them shows what the target takes of what they hold. Of
equal blocks one is drawn, with their number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from fxquant.analysis.nested_places import HEAD, Placed, opened, place
from fxquant.inspection.folding import FoldNode, Leaf, fold
from fxquant.inspection.nested_rows import boxes

if TYPE_CHECKING:
    from fxquant.analysis.inspector import InspectedNode, InspectorReport

_TOP = 62.0  # of the head of the picture
_LONGEST = 26  # characters that fit into a box
_STRIP = 40  # cells of a closed group
_COLOURS = {"target": ("#d7e6f7", "#2f6fc0"), "float": ("#fbe0cb", "#c8651b")}
_STYLE = (
    "text{font-family:system-ui,'Segoe UI',Arial,sans-serif;font-size:12px;fill:#1c1c1a}"
    ".op{font-weight:600}.path{fill:#66645e;font-size:11px}.head{font-weight:600;font-size:12.5px}"
    ".title{font-size:16px;font-weight:600}.edge{fill:none;stroke:#8f8d85;stroke-width:1.2}"
    ".room{fill:#00000008;stroke:#d5d2c9}.shut{fill:#fff;stroke:#a9a69d}"
)


def draw(report: InspectorReport) -> str:
    """An SVG document; hovering over a box shows the reason and the user's line."""
    nodes = [
        FoldNode(n.name, n.module or n.name, n.operator, n.shape, n.inputs) for n in report.nodes
    ]
    root = boxes(fold(nodes), nodes)
    whole = place(root, opened(root))
    width, height = max(whole.width, 520.0), whole.height + _TOP - HEAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *_head(report),
        *_inside(whole, (width - whole.width) / 2, _TOP - HEAD, report.nodes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _head(report: InspectorReport) -> Iterator[str]:
    taken = len(report.nodes) - len(report.refused)
    count = sum(p.device == "target" for p in report.partitions)
    title = f"{taken} of {len(report.nodes)} operators on {report.target}, {count} sub-graph(s)"
    yield f'<text class="title" x="20" y="26">{escape(title)}</text>'
    for i, (device, (fill, line)) in enumerate(_COLOURS.items()):
        label = report.target if device == "target" else "floating point"
        x = 20 + i * 180
        yield (
            f'<rect x="{x}" y="36" width="14" height="14" rx="3" fill="{fill}" stroke="{line}"/>'
        )
        yield f'<text x="{x + 20}" y="47">{escape(label)}</text>'


def _inside(room: Placed, x: float, y: float, nodes: Sequence[InspectedNode]) -> Iterator[str]:
    for way in room.ways:
        yield f'<path class="edge" d="{_curve([(a + x, t + y, b + y) for a, t, b in way])}"/>'
    for placed in room.inside:
        left, top = x + placed.x, y + placed.y
        if isinstance(placed.box.child, Leaf):
            yield _operator(placed, left, top, nodes[placed.box.child.first])
        elif placed.inside:
            yield _room(placed, left, top)
            yield from _inside(placed, left, top, nodes)
        else:
            yield from _closed(placed, left, top, nodes)


def _curve(spots: Sequence[tuple[float, float, float]]) -> str:
    """A smooth line that leaves and enters every spot vertically, and is straight beside boxes."""
    text = f"M{spots[0][0]:.1f} {spots[0][2]:.1f}"
    for (ax, _, bottom), (bx, top, end) in itertools.pairwise(spots):
        middle = (bottom + top) / 2
        text += f"C{ax:.1f} {middle:.1f} {bx:.1f} {middle:.1f} {bx:.1f} {top:.1f}V{end:.1f}"
    last = spots[-1]
    return text.removesuffix(f"V{last[2]:.1f}")


def _operator(placed: Placed, x: float, y: float, node: InspectedNode) -> str:
    fill, line = _COLOURS[node.device]
    shape = "×".join(map(str, node.shape[1:]))
    about = [f"{node.module or node.name}: {node.operator}", node.reason, shape, node.source]
    told = escape("\n".join(text for text in about if text))
    room = _LONGEST + 3 - len(shape)
    kind = node.operator if len(node.operator) <= room else f"{node.operator[: room - 1]}…"
    kind = f"{kind} {shape}"
    return (
        f'<g><title>{told}</title><rect x="{x:.1f}" y="{y:.1f}" width="{placed.width:.0f}" '
        f'height="{placed.height:.0f}" rx="7" fill="{fill}" stroke="{line}"/>'
        f'<text class="op" x="{x + 11:.1f}" y="{y + 18:.1f}">{_label(placed)}</text>'
        f'<text class="path" x="{x + 11:.1f}" y="{y + 34:.1f}">{escape(kind)}</text></g>'
    )


def _room(placed: Placed, x: float, y: float) -> str:
    return (
        f'<rect class="room" x="{x:.1f}" y="{y:.1f}" width="{placed.width:.1f}" '
        f'height="{placed.height:.1f}" rx="11"/>'
        f'<text class="head" x="{x + 13:.1f}" y="{y + 21:.1f}">{_label(placed)}</text>'
    )


def _closed(
    placed: Placed, x: float, y: float, nodes: Sequence[InspectedNode]
) -> Iterator[str]:  # fmt: skip
    child = placed.box.child
    inner = nodes[child.first : child.last]
    taken = sum(n.device == "target" for n in inner)
    told = escape(f"{child.label}: {taken} of {len(inner)} operators on the target")
    yield (
        f'<g><title>{told}</title><rect class="shut" x="{x:.1f}" y="{y:.1f}" '
        f'width="{placed.width:.0f}" height="{placed.height:.0f}" rx="9"/>'
        f'<text class="op" x="{x + 11:.1f}" y="{y + 19:.1f}">{_label(placed)}</text>'
        f'<text class="path" x="{x + 11:.1f}" y="{y + 35:.1f}">{len(inner)} operators</text>'
    )
    cells = min(len(inner), _STRIP)
    step = (placed.width - 22) / cells
    for i in range(cells):
        part = inner[i * len(inner) // cells : (i + 1) * len(inner) // cells]
        fill, line = _COLOURS["float" if any(n.device == "float" for n in part) else "target"]
        yield (
            f'<rect x="{x + 11 + i * step:.1f}" y="{y + 43:.1f}" width="{step * 0.86:.1f}" '
            f'height="9" rx="1.5" fill="{fill}" stroke="{line}" stroke-width="0.6"/>'
        )
    yield "</g>"


def _label(placed: Placed) -> str:
    child = placed.box.child
    times = ""
    if not isinstance(child, Leaf) and child.kind == "stack":
        times = f" × {len(child.children)}"
    # a number alone says little: "features.3"
    name = child.label
    if not isinstance(child, Leaf) and name[:1].isdigit() and child.path:
        name = ".".join(child.path.split(".")[-1 - len(name.split(".")) :])
    return escape(_cut(name) + times)


def _cut(text: str) -> str:
    """The end of a long path says more than its beginning."""
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"
