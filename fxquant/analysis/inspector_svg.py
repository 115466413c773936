"""The picture of an inspection: an SVG text, without any other program."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from fxquant.analysis.inspector_layout import Layout, Point, lay_out

if TYPE_CHECKING:
    from fxquant.analysis.inspector import InspectedNode, InspectorReport

_BOX, _GAP, _HEAD = (208.0, 46.0), (22.0, 26.0), 58.0
_LONGEST = 30  # characters that fit into a box
_COLOURS = {"target": ("#d7efdc", "#2f7d46"), "float": ("#fde3d3", "#b5541c")}
_STYLE = (
    "text{font-family:system-ui,'Segoe UI',Arial,sans-serif;font-size:12px;fill:#1c1c1c}"
    ".op{font-weight:600}.path{fill:#555;font-size:11px}.part{fill:#777;font-size:10px}"
    ".title{font-size:16px;font-weight:600}.edge{fill:none;stroke:#8a8a8a;stroke-width:1.2}"
)


def draw(report: InspectorReport) -> str:
    """An SVG document; hovering over a box shows the reason and the user's line."""
    names = [n.name for n in report.nodes]
    layout = lay_out(names, {n.name: n.inputs for n in report.nodes}, box=_BOX, gap=_GAP)
    width, height = max(layout.width, 520.0), layout.height + _HEAD
    shift = (width - layout.width) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#8a8a8a"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *_head(report),
        f'<g transform="translate({shift:.1f} {_HEAD:.0f})">',
        *_edges(layout),
        *(_box(node, layout.boxes[node.name]) for node in report.nodes),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _head(report: InspectorReport) -> list[str]:
    taken = len(report.nodes) - len(report.refused)
    count = sum(p.device == "target" for p in report.partitions)
    title = f"{taken} of {len(report.nodes)} operators on {report.target}, {count} sub-graph(s)"
    made = [f'<text class="title" x="20" y="26">{escape(title)}</text>']
    for i, (device, (fill, line)) in enumerate(_COLOURS.items()):
        label = report.target if device == "target" else "floating point"
        x = 20 + i * 180
        made.append(
            f'<rect x="{x}" y="36" width="14" height="14" rx="3" fill="{fill}" stroke="{line}"/>'
        )
        made.append(f'<text x="{x + 20}" y="47">{escape(label)}</text>')
    return made


def _edges(layout: Layout) -> list[str]:
    made = []
    for producer, consumer, between in layout.edges:
        start, end = layout.boxes[producer], layout.boxes[consumer]
        points = [
            Point(start.x, start.y + _BOX[1] / 2),
            *between,
            Point(end.x, end.y - _BOX[1] / 2),
        ]
        made.append(f'<path class="edge" marker-end="url(#tip)" d="{_curve(points)}"/>')
    return made


def _curve(points: list[Point]) -> str:
    """A smooth line that leaves and enters every point vertically."""
    text = f"M{points[0].x:.1f} {points[0].y:.1f}"
    for a, b in itertools.pairwise(points):
        middle = (a.y + b.y) / 2
        text += f"C{a.x:.1f} {middle:.1f} {b.x:.1f} {middle:.1f} {b.x:.1f} {b.y:.1f}"
    return text


def _box(node: InspectedNode, at: Point) -> str:
    fill, line = _COLOURS[node.device]
    x, y = at.x - _BOX[0] / 2, at.y - _BOX[1] / 2
    shape = "×".join(map(str, node.shape))
    lines = [f"{node.module or node.name}: {node.operator}", node.reason, shape, node.source]
    path = escape(_cut(node.module or node.name))
    told = escape("\n".join(text for text in lines if text))
    return (
        f'<g><title>{told}</title><rect x="{x:.1f}" y="{y:.1f}" width="{_BOX[0]:.0f}" '
        f'height="{_BOX[1]:.0f}" rx="7" fill="{fill}" stroke="{line}"/>'
        f'<text class="op" x="{x + 10:.1f}" y="{y + 19:.1f}">{escape(_cut(node.operator))}</text>'
        f'<text class="path" x="{x + 10:.1f}" y="{y + 36:.1f}">{path}</text>'
        f'<text class="part" x="{x + _BOX[0] - 10:.1f}" y="{y + 18:.1f}" '
        f'text-anchor="end">{node.partition}</text></g>'
    )


def _cut(text: str) -> str:
    """The end of a long path says more than its beginning."""
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"
