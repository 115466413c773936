"""An inspection as a text, as a graph of networkx and as node data of Google's Model Explorer."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fxquant.errors import ConfigError, nearest
from fxquant.inspection.operator_kernels import BOUNDARY, FLOAT, INTEGER, MOVES
from fxquant.io.text_tables import fitting, table, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import networkx as nx

    from fxquant.inspection.rows import Inspection, InspectionRow

GRAPH = "main"  # name of the graph in exported files

# colours that differ in lightness too, and take black text
_COLOURS = ("#c6e2c3", "#f7c99b", "#bcd4ee", "#f2b8c6", "#e3d3ef", "#f3e8a6", "#c9e6e6", "#dddddd")
_OF_KIND = {INTEGER: _COLOURS[0], FLOAT: _COLOURS[1], MOVES: _COLOURS[2], BOUNDARY: _COLOURS[4]}
_TEXTS = ("precision", "kind", "kernel", "output", "weight", "operator", "module", "owner")
_NUMBERS = ("scale", "zero_point")
_GRADIENT = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#f28e2b"}]

_WORD = re.compile(r"\w+")
_NARROW = ("module", "operator", "output", "weight", "kernel", "source")
_WIDE = ("module", "operator", "shape", "output", "scale", "owner", "weight", "precision", "kernel",
         "why", "source")  # fmt: skip


def to_networkx(found: Inspection) -> nx.DiGraph:
    """See `Inspection.to_networkx`."""
    import networkx as nx

    graph: nx.DiGraph = nx.DiGraph(target=found.target, calibrated=found.calibrated)
    names = [f.name for f in fields(found.rows[0])] if found.rows else []
    for row in found.rows:
        values = {name: getattr(row, name) for name in names if name not in ("node", "inputs")}
        graph.add_node(row.node, **values)
    for row in found.rows:
        for position, name in enumerate(row.inputs):
            if name not in graph:
                graph.add_node(name, operator="")
            graph.add_edge(name, row.node, position=position)
    return graph


def to_model_explorer(found: Inspection, field: str) -> str:
    """See `Inspection.to_model_explorer`.

    Source of the format: `node_data_builder.py` of Model Explorer: values by graph and node, in
    which the adapter for ONNX calls nodes by their names in the file.
    """
    if field not in _TEXTS + _NUMBERS:
        known = ", ".join(_TEXTS + _NUMBERS)
        fix = nearest(field, _TEXTS + _NUMBERS) or f"the fields are {known}"
        raise ConfigError("FXQ279", f"{field!r} is no field of node data", fix=fix)
    data: dict[str, Any]
    if field in _NUMBERS:
        numbers = ((r, _number(r, field)) for r in found.rows)
        data = {"results": {r.module: {"value": n} for r, n in numbers if n is not None}}
        data["gradient"] = _GRADIENT
    else:
        shown = [(r, str(getattr(r, field))) for r in found.rows if getattr(r, field)]
        colours = _colours([text for _, text in shown])
        data = {
            "results": {r.module: {"value": t, "bgColor": colours[t]} for r, t in shown},
            "showExpandedSummaryOnGroupNode": True,
        }
    return json.dumps({GRAPH: data}, indent=1)


def _number(row: InspectionRow, field: str) -> float | None:
    if row.grid is None:
        return None
    return row.grid.zero_point if field == "zero_point" else row.grid.scale and row.grid.scale[1]


def _colours(texts: Sequence[str]) -> dict[str, str]:
    """A colour for each text; those beyond the palette share its last one."""
    order = dict.fromkeys(texts)
    if set(order) <= set(_OF_KIND):
        return _OF_KIND
    return {t: _COLOURS[min(i, len(_COLOURS) - 1)] for i, t in enumerate(order)}


def to_text(found: Inspection, width: int | None) -> str:
    """See `Inspection.text`."""
    lines = [_table(found.rows, width), "", *_ending(found)]
    groups = float_groups(found.rows)
    if groups:
        lines += ["in floating point:", *(f"  {line}" for line in float_lines(groups))]
    text = "\n".join(lines)
    return text if width is None else wrapped(text, width)


def _table(rows: Sequence[InspectionRow], width: int | None) -> str:
    heads: tuple[str, ...] = _WIDE
    cells = [_all_cells(r) for r in rows]
    if width is not None:
        heads = _NARROW
        cells = [_few_cells(r) for r in rows]
    with fitting(width):
        return table(heads, cells)


def _kernel(row: InspectionRow) -> str:
    return f"float: {row.kernel}" if row.kind == FLOAT and row.kernel != FLOAT else row.kernel


def _few_cells(row: InspectionRow) -> tuple[object, ...]:
    """The fields that fit into a narrow table: one word each, of a file its name."""
    weight = row.weight.removesuffix(" channels").removesuffix(" blocks").replace(" x ", "x")
    line = row.source.replace("\\", "/").rpartition("/")[2]
    return row.module, row.operator, row.output, weight, _kernel(row), line


def _all_cells(row: InspectionRow) -> tuple[object, ...]:
    shape = " ".join("x".join(map(str, s)) for s in row.shapes)
    scale = f"{row.grid.scale[1]:.4g}" if row.grid is not None and row.grid.scale else ""
    why = row.reason or (row.why[0] if row.why else "")
    return (row.module, row.operator, shape, row.output, scale, row.owner, row.weight,
            row.precision, _kernel(row), why, row.source)  # fmt: skip


def _ending(found: Inspection) -> Iterable[str]:
    quantized = sum(r.output != "float" for r in found.rows)
    yield f"{quantized} of {len(found.rows)} outputs have a grid on {found.target}"
    by = f"as {found.runtime} takes them" if found.runtime else "by the rules of the target"
    yield f"kernels are {by}; {'' if found.calibrated else 'not '}calibrated"


def float_groups(rows: Sequence[InspectionRow]) -> list[tuple[str, list[InspectionRow]]]:
    """Operators in floating point by their reason, the largest group first.

    Reasons that differ in the nodes that they name are one.
    """
    names = {row.node for row in rows} - {row.operator for row in rows}
    groups: dict[str, list[InspectionRow]] = {}
    for row in rows:
        if row.kind == FLOAT:
            groups.setdefault(without_names(row.reason, names), []).append(row)
    found = [(same if len(g) > 1 else g[0].reason, g) for same, g in groups.items()]
    return sorted(found, key=lambda item: -len(item[1]))


def without_names(reason: str, names: set[str]) -> str:
    """A reason without the names of nodes in it: it may hold for many."""
    return _WORD.sub(lambda word: "..." if word[0] in names else word[0], reason)


def float_lines(
    groups: Sequence[tuple[str, list[InspectionRow]]], most: int | None = None
) -> list[str]:
    """A line for each reason: how many operators, why, and where the first of them is."""
    lines = [
        f"{len(rows)} x {reason} ({rows[0].module}{', ...' if len(rows) > 1 else ''})"
        for reason, rows in groups[:most]
    ]
    left = sum(len(rows) for _, rows in groups[len(lines) :])
    return [*lines, f"... and {left} more"] if left else lines
