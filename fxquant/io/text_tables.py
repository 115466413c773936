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
_LINES = 2  # of one word that is wider than its column
_LEAST = 8  # columns, where not even the longest words have room
# where a word that is wider than its column is broken
_FOLDER, _DOT, _INNER = (re.compile(f"(?<=[{marks}])") for marks in ("/", ".,", "/._:"))
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?%?")
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
    words and at the dots and slashes of paths; of names longer than two lines the end is shown.

    >>> print(table(("name", "n"), [("conv1", 3)]))
    name   n
    -----  -
    conv1  3
    """
    width = _WIDTH.get()
    cells = [[_cut(str(c)) if width is None else str(c) for c in row] for row in rows]
    columns = list(zip(heads, *cells, strict=True))
    widths, gap = [max(map(len, column)) for column in columns], _GAP
    if width is not None:
        widths, gap = _fitted(columns, width - len(indent))
    lines = [heads, ["-" * w for w in widths], *cells]
    return "\n".join(
        (indent + gap.join(c.ljust(w) for c, w in zip(part, widths, strict=True))).rstrip()
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


def _fitted(columns: Sequence[Sequence[str]], width: int) -> tuple[list[int], str]:
    """Narrower columns, and the gap between them.

    The widest give way first, down to their longest words and parts of names; then names are broken
    anywhere. Other words and numbers are never broken.
    """
    widths = [max(map(len, column)) for column in columns]
    parts = [max(len(part) for cell in column for part in _words(cell)) for column in columns]
    least = [max(map(_least, column)) for column in columns]
    between = len(columns) - 1
    gap = _GAP if sum(least) + len(_GAP) * between <= width else _GAP[:1]
    for floor in (parts, least):
        while sum(widths) + len(gap) * between > width:
            can = [i for i, now in enumerate(widths) if now > floor[i]]
            if not can:
                break
            widths[max(can, key=lambda i: widths[i])] -= 1
    return widths, gap


def _least(cell: str) -> int:
    return max(min(_LEAST, len(w)) if _is_name(w) else len(w) for w in cell.split(" "))


def _is_name(word: str) -> bool:
    """Whether a word has parts: a path or a dotted name, and no number."""
    return _INNER.search(word) is not None and _NUMBER.fullmatch(word) is None


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
            lines += [word] if len(word) <= width else _filled(word, width)
    return [line for line in lines if line] or [""]


def _words(cell: str) -> list[str]:
    """What is not broken without need: words, folders of paths, parts of dotted names."""
    return [
        part
        for word in cell.split(" ")
        for part in ((_FOLDER if "/" in word else _DOT).split(word) if _is_name(word) else [word])
    ]


def _filled(word: str, width: int) -> list[str]:
    """A long word on two lines; where it is longer than these its end is shown."""
    for rest in range(len(word), 0, -1):
        lines = _split(word if rest == len(word) else f"…{word[-rest:]}", width)
        if len(lines) <= _LINES:
            return lines
    return [word[:width]]


def _split(word: str, width: int) -> list[str]:
    lines = [""]
    for piece in _words(word):
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
