"""Plain-text tables for reports, and texts that fit a terminal."""

from __future__ import annotations

import re
import textwrap
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WIDEST = 60
_GAP = "  "  # between columns
_LEAST = 8  # columns, where not even the longest words have room
# where a word that is wider than its column is broken
_FOLDER, _DOT, _INNER = re.compile(r"(?<=/)"), re.compile(r"(?<=[.,])"), re.compile(r"(?<=[._:])")
_WIDTH: ContextVar[int | None] = ContextVar("_WIDTH", default=None)


@contextmanager
def fitting(width: int | None) -> Iterator[None]:
    """Tables that are made inside the block are at most ``width`` columns wide; None: any."""
    token = _WIDTH.set(width)
    try:
        yield
    finally:
        _WIDTH.reset(token)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], *, indent: str = "") -> str:
    """Rows under heads, columns as wide as their widest cell.

    Long cells are cut; inside of `fitting` they go on in further lines instead, broken between
    words and at the dots and slashes of paths.

    >>> print(table(("name", "n"), [("conv1", 3)]))
    name   n
    -----  -
    conv1  3
    """
    width = _WIDTH.get()
    cells = [[_cut(str(c)) if width is None else str(c) for c in row] for row in rows]
    columns = list(zip(heads, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    if width is not None:
        widths = _fitted(columns, width - len(indent) - len(_GAP) * (len(widths) - 1))
    lines = [heads, ["-" * w for w in widths], *cells]
    return "\n".join(
        (indent + _GAP.join(c.ljust(w) for c, w in zip(part, widths, strict=True))).rstrip()
        for line in lines
        for part in _parts(line, widths)
    )


def wrapped(text: str, width: int) -> str:
    """A text without lines wider than ``width``, broken between words and indented further.

    Words that are wider stay whole: they are paths.
    """
    return "\n".join(
        line if len(line) <= width else _folded(line, width) for line in text.split("\n")
    )


def _folded(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line.strip(), width, initial_indent=indent, subsequent_indent=f"{indent}  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _fitted(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Narrower columns: the widest give way first, down to their longest unbreakable words."""
    widths = [max(map(len, column)) for column in columns]
    words = [max(len(w) for cell in column for w in _words(cell)) for column in columns]
    for least in (words, [min(_LEAST, width) for width in words]):
        while sum(widths) > room:
            can = [i for i, width in enumerate(widths) if width > least[i]]
            if not can:
                break
            widths[max(can, key=lambda i: widths[i])] -= 1
    return widths


def _parts(line: Sequence[str], widths: Sequence[int]) -> Iterator[list[str]]:
    """The lines that a row takes: one where every cell fits."""
    cells = [_broken(cell, width) for cell, width in zip(line, widths, strict=True)]
    for i in range(max(map(len, cells))):
        yield [cell[i] if i < len(cell) else "" for cell in cells]


def _broken(cell: str, width: int) -> list[str]:
    """A cell as lines of at most ``width``; words are broken only where they are wider."""
    lines = [""]
    for word in cell.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if len(longer) <= width:
            lines[-1] = longer
        else:
            lines += [word] if len(word) <= width else _filled(_words(word), width)
    return [line for line in lines if line] or [""]


def _words(cell: str) -> list[str]:
    """What is not broken without need: words, folders of paths, parts of dotted names."""
    return [p for w in cell.split(" ") for p in (_FOLDER if "/" in w else _DOT).split(w)]


def _filled(pieces: Sequence[str], width: int) -> list[str]:
    lines = [""]
    for piece in pieces:
        parts = [piece]
        if len(piece) > width:
            parts = [p[i : i + width] for p in _INNER.split(piece) for i in range(0, len(p), width)]
        for part in parts:
            if lines[-1] and len(lines[-1]) + len(part) > width:
                lines.append("")
            lines[-1] += part
    return lines


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
