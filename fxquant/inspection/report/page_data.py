"""Everything a report page shows, as plain data with short keys: a thousand nodes stay small.

A node: name `n`, path `p`, operator `o`, shape `s`, places of what it reads `in`, reasons `why` and
line `src` by their numbers, kind of its kernel `k`, the kernel `kn` and the reason `kw` of floating
point, precision `pr` and fewest bits `b`, grid `g` (type `t`, step `s`, zero point `z`, ends `lo`
and `hi`, `un` where there is none yet), weights `w`, errors `e` (own dB, dB with all before, share
of the noise), statistics of the values `h`, times `t`.
A box of the folded graph: an operator's place `i`, or children `c` with their rows `r`, edges `e`
and far edges `f`; a label `l`, path `p` and kind `k`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fxquant._version import __version__
from fxquant.inspection.folding import Leaf, fold
from fxquant.inspection.nested_rows import Box, boxes
from fxquant.inspection.operator_kernels import FLOAT, INTEGER, MOVES
from fxquant.inspection.report import front_page, shown_results
from fxquant.inspection.report.advice import Known, advice
from fxquant.inspection.report.environment import environment
from fxquant.inspection.report.node_facts import Texts, facts, fold_nodes, precision, shown_nodes
from fxquant.inspection.report.weight_ranges import weight_facts
from fxquant.precision.sites import find_sites, stored_bytes

if TYPE_CHECKING:
    from torch import Tensor, fx

    from fxquant.sim import QuantizationSimModel


_TIMES = ("seconds", "conversions", "share", "float_seconds")


def page_data(
    sim: QuantizationSimModel,
    *,
    title: str,
    statistics: Mapping[str, Mapping[str, Any]],
    errors: Mapping[str, Any],
    evaluation: Sequence[Mapping[str, Any]],
    exported: Mapping[str, Any] | None,
    profile: Mapping[str, Any] | None,
    mixed: Mapping[str, Any] | None,
    analyzer: Mapping[str, Any] | None,
    audit: Mapping[str, Any] | None,
    recipe: Mapping[str, Any] | None,
    before: Mapping[str, Tensor],
    samples: int,
) -> dict[str, Any]:
    """Put together what is known.

    Args:
        sim: the simulation.
        title: name of the page.
        statistics: of the values, by node; see `value_statistics`.
        errors: `rows` by node: own dB, dB with all before, share; `output_db`.
        evaluation: results by name.
        exported: the report of an export.
        profile: times in the runtime.
        mixed: a search for mixed precision.
        analyzer: sensitivities of layers.
        audit: findings about calibration data.
        recipe: what a run decided.
        before: float parameters before techniques, by name.
        samples: samples that statistics and errors are of; 0 without data.
    """
    gm = sim.model
    nodes = shown_nodes(gm)
    files, texts = Texts(), Texts()
    entries = facts(gm, sim.target, nodes, files, texts)
    _add_weights(gm, nodes, entries, before)
    _add_measured(entries, statistics, errors.get("rows", {}))
    _add_runtime(entries, exported, profile, texts)
    for entry in entries:
        entry["pr"], entry["b"] = precision(entry)
    folding = fold_nodes(nodes, gm)
    known = Known(
        entries, errors.get("output_db"), bool(samples), exported is not None,
        bool(exported and exported.get("proven")), front_page.worst(entries),
        shown_results.rows(audit, "findings"),
    )  # fmt: skip
    whole, stored = stored_bytes(gm, find_sites(gm))
    return {
        "title": title, "version": __version__, "target": sim.target.name,
        "about": sim.target.description, "samples": samples, "nodes": entries,
        "tree": tree(boxes(fold(folding), folding)), "files": files.list(), "texts": texts.list(),
        "overview": {
            "evaluation": [*evaluation], "size": {"float": whole, "stored": stored},
            "counts": front_page.counts(entries), "output_db": known.output_db,
            "reasons": front_page.float_reasons(entries, texts.list()), "worst": known.worst,
            "advice": advice(known),
        },
        "mixed": shown_results.search(mixed), "analyzer": shown_results.sensitivities(analyzer),
        "export": shown_results.proof(exported), "profile": shown_results.times(profile),
        "recipe": recipe, "environment": environment(sim),
    }  # fmt: skip


def tree(box: Box) -> dict[str, Any]:
    """A folded graph as the page reads it."""
    child = box.child
    if isinstance(child, Leaf):
        return {"i": child.first, "l": child.label}
    made: dict[str, Any] = {
        "k": child.kind, "l": child.label, "p": child.path, "a": child.first, "z": child.last,
        "c": [tree(b) for b in box.boxes],
    }  # fmt: skip
    if child.kind != "stack":
        made |= {"r": box.rows.rows, "e": box.rows.edges}
        if box.rows.far:
            made["f"] = box.rows.far
    return made


def _add_weights(
    gm: fx.GraphModule, nodes: Sequence[fx.Node], entries: Sequence[dict[str, Any]],
    before: Mapping[str, Tensor],
) -> None:  # fmt: skip
    for node, entry in zip(nodes, entries, strict=True):
        if node.op == "call_module":
            path = str(node.target)
            found = weight_facts(gm.get_submodule(path), path, before)
            if found:
                entry["w"] = found


def _add_measured(
    entries: Sequence[dict[str, Any]], statistics: Mapping[str, Mapping[str, Any]],
    errors: Mapping[str, Sequence[float | None]],
) -> None:  # fmt: skip
    for entry in entries:
        name = entry["n"]
        if statistics.get(name):
            entry["h"] = statistics[name]
        found = errors.get(name)
        if found is not None and any(v is not None for v in found):
            entry["e"] = [None if v is None else float(f"{v:.4g}") for v in found]


def _add_runtime(
    entries: Sequence[dict[str, Any]], exported: Mapping[str, Any] | None,
    profile: Mapping[str, Any] | None, texts: Texts,
) -> None:  # fmt: skip
    """Kernels that a runtime chose say more than reasons of a plan."""
    kernels = {row.get("name"): row for row in shown_results.rows(exported, "operators")}
    times = {row.get("node"): row for row in shown_results.rows(profile, "rows")}
    for entry in entries:
        row = kernels.get(entry["p"])
        if row is not None and entry.get("k") != MOVES:
            entry |= {"k": INTEGER if row.get("integer") else FLOAT, "kn": row.get("kernel", "")}
            entry.pop("kw", None)
            if row.get("reason"):
                entry["kw"] = texts.number(row["reason"])
        row = times.get(entry["p"])
        if row is not None:
            entry["t"] = [row.get(key) for key in _TIMES]
            entry["kn"] = row.get("kernel") or entry.get("kn", "")
