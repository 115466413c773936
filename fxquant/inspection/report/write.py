"""Write the report of a simulation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fxquant.errors import ConfigError
from fxquant.inspection.node_errors import node_errors
from fxquant.inspection.report import handed_in
from fxquant.inspection.report.node_facts import shown_nodes
from fxquant.inspection.report.page import html
from fxquant.inspection.report.page_data import page_data
from fxquant.inspection.report.value_statistics import value_statistics
from fxquant.io.writing import as_path, write_text
from fxquant.ptq.layer_walk import require_number
from fxquant.ptq.walking.walk import bound_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fxquant.sim import QuantizationSimModel


def write_report(
    sim: QuantizationSimModel, path: str | Path, data: Any = None, *, samples: int | None = 32,
    evaluation: Mapping[str, float] | None = None, export: Any = None, profile: Any = None,
    mixed_precision: Any = None, analyzer: Any = None, audit: Any = None,
    recipe: Any = None, before: nn.Module | Mapping[str, Tensor] | None = None,
    title: str | None = None, max_memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:  # fmt: skip
    """Write one HTML file about a simulation; see `QuantizationSimModel.report`."""
    file = as_path(path)
    given: dict[str, Any] = {
        "evaluation": handed_in.evaluation_rows(evaluation),
        "exported": handed_in.export_report(export),
        "profile": handed_in.plain_result(profile, "profile", "rows"),
        "mixed": handed_in.plain_result(mixed_precision, "mixed-precision result", "points"),
        "analyzer": handed_in.plain_result(analyzer, "analyzer result", "enabled"),
        "audit": handed_in.plain_result(audit, "calibration audit", "findings"),
        "recipe": handed_in.plain_result(recipe, "recipe"),
        "before": _parameters(before),
    }
    _require_same_network(sim, given)
    measured: dict[str, Any] = {"statistics": {}, "errors": {}, "samples": 0}
    if data is not None:
        measured = _measured(sim, data, samples, max_memory, progress)
    page = html(page_data(sim, title=title or file.stem, **given, **measured))
    return write_text(file, page, error=ConfigError)


def _require_same_network(sim: QuantizationSimModel, given: Mapping[str, Any]) -> None:
    """Refuse results of another network.

    Raises:
        ConfigError: FXQ795.
    """
    nodes = list(sim.model.graph.nodes)
    known = {n.name for n in nodes} | {str(n.target) for n in nodes}
    for key, what, rows in (
        ("exported", "export report", "tensors"),
        ("profile", "profile", "rows"),
    ):
        found = given[key]
        listed = (found or {}).get(rows)
        entries = listed if isinstance(listed, list) else []
        names = [str(r["node"]) for r in entries if isinstance(r, dict) and "node" in r]
        # what a profile has in parentheses was put in by the runtime
        names = [name for name in names if "(" not in name]
        handed_in.require_same_network(found, what, names, known)


def _measured(
    sim: QuantizationSimModel, data: Any, samples: int | None, max_memory: int | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:  # fmt: skip
    """What data show: values of the float model, and errors of the simulation."""
    require_number("samples", samples, 1, none=True)
    require_number("max_memory", max_memory, 0, none=True)
    gm = sim.model
    names = [str(n.target).lstrip("*") for n in gm.graph.nodes if n.op == "placeholder"]
    bound = list(bound_batches(gm, data, samples))  # data may be readable once only
    batches = [dict(zip(names, values, strict=True)) for values, _ in bound]
    settings: dict[str, Any] = {"samples": None, "max_memory": max_memory, "progress": progress}
    statistics = value_statistics(gm, shown_nodes(gm), batches, **settings)
    errors: dict[str, Any] = {}
    if all(q.is_initialized() for q in sim.quantizers()):
        found = node_errors(sim, batches, threads=1, **settings)
        rows = {r.node: (r.local_db, r.cumulative_db, r.noise_share) for r in found.rows}
        errors = {"rows": rows, "output_db": found.output_db}
    return {"statistics": statistics, "errors": errors, "samples": sum(n for _, n in bound)}


def _parameters(before: nn.Module | Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """Parameters of the model before techniques.

    Raises:
        ConfigError: FXQ793, it is no model and no state dict.
    """
    if before is None:
        return {}
    if isinstance(before, nn.Module):
        return before.state_dict()
    if not hasattr(before, "items") or not all(isinstance(v, Tensor) for v in before.values()):
        what = f"before is a {type(before).__name__}, not a model"
        raise ConfigError("FXQ793", what, fix="pass the float model, or its state dict")
    return before
