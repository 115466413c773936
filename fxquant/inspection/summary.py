"""A simulation on one screen, and the table of its quantizers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fxquant.fingerprint import CALIBRATED, changed_since
from fxquant.inspection.formats import float_groups, float_lines
from fxquant.inspection.operator_kernels import FLOAT, INTEGER, MOVES
from fxquant.inspection.rows import describe_grid, grid_type, inspect_simulation
from fxquant.io.text_tables import table, wrapped
from fxquant.nn.quantizer_places import QuantizerPlace, quantizer_places
from fxquant.precision.sites import find_sites, stored_bytes
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import fx

    from fxquant.inspection.rows import Inspection
    from fxquant.sim import QuantizationSimModel

_WIDTH = 80
_REASONS = 8
_KINDS = 8


def summary(sim: QuantizationSimModel) -> str:
    """What a simulation is, in less than sixty lines however large the model; nothing is run."""
    found = inspect_simulation(sim)
    return wrapped("\n".join(_lines(sim, found)), _WIDTH)


def _lines(sim: QuantizationSimModel, found: Inspection) -> Iterator[str]:
    gm = sim.model
    quantizers = [m for m in gm.modules() if isinstance(m, QuantizerBase)]
    ready = sum(q.is_initialized() for q in quantizers)
    frozen = sum(q.frozen for q in quantizers)
    changed = changed_since(gm, gm.meta.get(CALIBRATED)) if ready == len(quantizers) else []
    yield f"QuantizationSimModel for {found.target}"
    yield from _fields([
        ("scheme", sim.quant_scheme.name),
        ("operators", _operators(found)),
        ("tensors", _counted(r.output.partition(" ")[0] for r in found.rows)),
        ("weights", _counted(r.weight.partition(" ")[0] for r in found.rows if r.weight)),
        ("calibrated", _calibrated(changed, ready, len(quantizers))),
        ("frozen", f"{frozen} of {len(quantizers)} quantizers"),
        ("trains", _trains(gm, quantizers)),
        ("size", _size(gm)),
    ])  # fmt: skip
    groups = float_groups(found.rows)
    if groups:
        yield "in floating point:"
        yield from (f"  {line}" for line in float_lines(groups, _REASONS))
    yield f"next: {_next(changed, calibrated=ready == len(quantizers))}"


def _fields(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, text in pairs:
        yield f"  {name:<11}{text}"


def _counted(kinds: Iterable[str]) -> str:
    counts = Counter(kinds).most_common()
    shown = [f"{count} {kind}" for kind, count in counts[:_KINDS]]
    left = sum(count for _, count in counts[_KINDS:])
    return ", ".join([*shown, f"{left} of other types"] if left else shown) or "none"


def _operators(found: Inspection) -> str:
    kinds = Counter(row.kind for row in found.rows)
    computed = kinds[INTEGER] + kinds[FLOAT]
    return f"{kinds[INTEGER]} of {computed} computed in integers, {kinds[MOVES]} only move values"


def _calibrated(changed: list[str], ready: int, total: int) -> str:
    if ready < total:
        return f"no: {total - ready} of {total} quantizers have no range"
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"yes, but weights changed since: {changed[0]}{more}"
    return f"yes, {total} quantizers"


def _trains(gm: fx.GraphModule, quantizers: Iterable[QuantizerBase]) -> str:
    """Which parameters an optimizer would move."""
    ranges = {id(p): p for q in quantizers for p in q.parameters()}
    learned = sum(p.requires_grad for p in ranges.values())
    weights = [p for p in gm.parameters() if id(p) not in ranges]
    trained = sum(p.numel() for p in weights if p.requires_grad)
    mode = "training" if gm.training else "evaluation"
    return f"{trained:,} weights, {learned} ends of ranges; in {mode} mode"


def _size(gm: fx.GraphModule) -> str:
    floats, stored = stored_bytes(gm, find_sites(gm))
    ratio = f" ({floats / stored:.1f} times smaller)" if stored else ""
    return f"{_bytes(floats)} of float weights, {_bytes(stored)} quantized{ratio}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _next(changed: list[str], *, calibrated: bool) -> str:
    if not calibrated:
        return "sim.compute_encodings(batches), then sim.export(folder, name)"
    if changed:
        return "sim.compute_encodings(batches) again: ranges are of other weights"
    return "sim.export(folder, name); sim.explain(name) says why, sim.table() shows grids"


def quantizer_table(gm: fx.GraphModule) -> str:
    """Every quantizer of a simulated graph: where it stands, its type, range and step."""
    rows = [(p.path, _tensor(p), *_grid_cells(p.quantizer)) for p in quantizer_places(gm)]
    heads = ("module", "tensor", "type", "symmetric", "low", "high", "scale", "zero point",
             "frozen")  # fmt: skip
    return table(heads, rows)


def _tensor(place: QuantizerPlace) -> str:
    return place.key if place.role == "param" else f"{place.role} {place.key}"


def _grid_cells(quantizer: QuantizerBase) -> tuple[object, ...]:
    grid = describe_grid(quantizer)
    low, high = (f"{end:.5g}" for end in grid.range) if grid.range else ("-", "-")
    steps = sorted(set(grid.scale)) if grid.scale else []
    scale = " to ".join(f"{s:.4g}" for s in steps) or "-"
    zero = "-" if grid.zero_point is None else grid.zero_point
    sided = "yes" if grid.symmetric else "no"
    return (grid_type(quantizer), sided, low, high, scale, zero, "yes" if grid.frozen else "no")
