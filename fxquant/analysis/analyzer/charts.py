"""Small pictures as pages of HTML: one file each, no script, nothing from a network."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STYLE = """
:root { color-scheme: light dark; font: 14px system-ui, sans-serif }
table { border-collapse: collapse } td { padding: 1px 8px; white-space: nowrap }
td.bar { width: 480px } td.n { text-align: right; font-variant-numeric: tabular-nums }
rect { fill: #4a7fb5 } line { stroke: #c2452d; stroke-width: 1.5 } svg { display: block }
"""
_WIDTH = 480


def page(title: str, body: str) -> str:
    """A page; the title is escaped, the body is HTML."""
    head = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{head}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>{head}</h1>\n{body}\n</body></html>\n"
    )


def bars(title: str, values: Mapping[str, float]) -> str:
    """A page with one bar a name; bars begin at the smallest value where zero is far away."""
    finite = [v for v in values.values() if math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    low = low if low > 0 and low > 0.5 * high else min(low, 0.0)
    high = max(high, 0.0)
    spans = {k: (min(0.0, v) if low <= 0 else low, max(v, low, 0.0)) for k, v in values.items()}
    return page(title, _rows(values, spans, (low, high)))


def intervals(title: str, ends: Mapping[str, tuple[float, float]]) -> str:
    """A page with one interval a name, on one scale."""
    low = min((a for a, _ in ends.values()), default=0.0)
    high = max((b for _, b in ends.values()), default=0.0)
    return page(title, _rows(ends, ends, (low, high)))


def _rows(
    values: Mapping[str, object], spans: Mapping[str, tuple[float, float]],
    scale: tuple[float, float],
) -> str:  # fmt: skip
    low, high = scale
    size = (high - low) or 1.0
    rows = []
    for name, value in values.items():
        start, end = (_WIDTH * (x - low) / size for x in spans[name])
        number = ", ".join(f"{x:.6g}" for x in (value if isinstance(value, tuple) else (value,)))
        rows.append(
            f'<tr><td>{html.escape(name)}</td><td class="bar"><svg width="{_WIDTH}" height="12">'
            f'<rect x="{start:.1f}" width="{max(end - start, 1):.1f}" height="12"/></svg></td>'
            f'<td class="n">{number}</td></tr>'
        )
    return f"<table>\n{chr(10).join(rows)}\n</table>"


def histogram(
    title: str, start: float, width: float, counts: Sequence[int],
    clip: tuple[float, float] | None,
) -> str:  # fmt: skip
    """A page with a histogram and the ends of a quantizer's range.

    Args:
        title: of the page.
        start: lower end of the first bin, in units of the tensor.
        width: of a bin, in the same.
        counts: elements in each bin.
        clip: ends of the range; None: there is none.
    """
    end, peak = start + width * len(counts), max(counts, default=0) or 1
    low, high = min(start, *(clip or (start,))), max(end, *(clip or (end,)))
    scale = _WIDTH / ((high - low) or 1.0)
    parts = [
        f'<rect x="{(start + i * width - low) * scale:.2f}" y="{200 * (1 - n / peak):.1f}" '
        f'width="{max(width * scale, 0.5):.2f}" height="{200 * n / peak:.1f}"/>'
        for i, n in enumerate(counts)
        if n
    ]
    for x in clip or ():
        at = (x - low) * scale
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="200"/>')
    text = f"values {start:.6g} to {end:.6g}"
    text += f", range of the quantizer {clip[0]:.6g} to {clip[1]:.6g}" if clip else ""
    return page(title, f'<svg width="{_WIDTH}" height="200">{"".join(parts)}</svg>\n<p>{text}</p>')
