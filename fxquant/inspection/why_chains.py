"""Why an operator is what it is: its own reasons, and those of what decided for it.

A grid may belong to another module, an activation may be computed in the kernel of the layer before
it, and a grid is there because somebody reads it: the chain follows these to where they were
decided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant.errors import SelectorError, nearest
from fxquant.graph.meta import path_matches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fxquant.inspection.rows import Inspection, InspectionRow

_IN = "in "  # how the kernel of what is computed inside of another operator is called


def explain(found: Inspection, name: str) -> str:
    """See `Inspection.explain`."""
    rows = {row.module: row for row in found.rows}
    chosen = [r for r in found.rows if r.node == name or path_matches(name, r.module, below=True)]
    if not chosen:
        fix = nearest(name, rows) or "the modules are those of the inspection's rows"
        raise SelectorError("FXQ739", f"no operator is called {name!r}", fix=fix)
    return "\n".join(line for row in chosen for line in _chain(row, rows, 0, set()))


def _chain(
    row: InspectionRow, rows: dict[str, InspectionRow], depth: int, seen: set[str]
) -> Iterator[str]:
    """The lines of one operator, and below them those of what decided for it."""
    seen.add(row.module)
    margin = "  " * depth
    place = f" ({row.source})" if row.source else ""
    yield f"{margin}{row.module}: {_what(row)}{place}"
    reasons = dict.fromkeys([*row.why, *([row.reason] if row.reason else [])])
    yield from (f"{margin}  - {reason}" for reason in reasons)
    for relation, other in _deciders(row, rows):
        yield f"{margin}  {relation} {other.module}"
        if other.module not in seen:
            yield from _chain(other, rows, depth + 2, seen)


def _deciders(
    row: InspectionRow, rows: dict[str, InspectionRow]
) -> Iterator[tuple[str, InspectionRow]]:
    head = row.kernel.removeprefix(_IN) if row.kernel.startswith(_IN) else ""
    if head in rows:
        yield "its kernel is that of", rows[head]
    if row.owner != row.module and row.owner in rows:
        yield "its grid is that of", rows[row.owner]


def _what(row: InspectionRow) -> str:
    parts = [row.operator or row.kind, row.precision, f"kernel {row.kernel}"]
    if row.grid is not None:
        grid = row.grid
        ends = "" if grid.range is None else f" {grid.range[0]:.4g} to {grid.range[1]:.4g}"
        parts.append(f"output {grid.type}{ends}")
    return ", ".join(part for part in parts if part)
