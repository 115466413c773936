"""Setting precisions by hand: by module, class, path, operator, or end of the graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant import calibrate, ops
from fxquant.editing import explain, quantized_modules
from fxquant.errors import ConfigError, SelectorError
from fxquant.fingerprint import ranges_change
from fxquant.graph.rewriter import label
from fxquant.graph.selectors import several
from fxquant.placement.dataflow import takes_item
from fxquant.precision.change import change
from fxquant.precision.kinds import Precision, Role, precision_of, shown
from fxquant.precision.sites import Site, Sites, find_sites, integer_nodes
from fxquant.ptq.snapshot import restore, snapshot
from fxquant.ptq.walking.given_simulation import require_simulation
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fxquant.graph.selectors import Selector
    from fxquant.sim import QuantizationSimModel
    from fxquant.targets import Target

log = logging.getLogger("fxquant")


@dataclass(frozen=True)
class PrecisionChange:
    """What a request for a precision changed.

    Attributes:
        changed: what changed, by the name of the grid: (before, after) for people.
        notes: what the target makes of it, and ranges that were kept.
    """

    changed: Mapping[str, tuple[str, str]]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{name}: {old} -> {new}" for name, (old, new) in self.changed.items()]
        return "\n".join([*(lines or ["nothing changed"]), *self.notes])


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        activation: of the values that an operator reads.
        param: by name of a parameter; "*" for all.
        output: of the values that it writes.
    """

    activation: Any = None
    param: Any = None
    output: Any = None

    def wanted(self) -> Iterator[tuple[str, str, Precision]]:
        """(kind, name of the parameter, precision) of what is given."""
        for kind in ("activation", "output"):
            given = getattr(self, kind)
            if given is not None:
                yield kind, "", precision_of(given, kind)
        by_name = self.param if isinstance(self.param, Mapping) else {"*": self.param}
        for name, given in by_name.items():
            if given is not None:
                yield "param", str(name), precision_of(given, "param")


def set_precision(
    sim: QuantizationSimModel,
    arg: Iterable[Selector] | Selector | fx.Node,
    activation: int | str | None = None,
    param: int | str | Mapping[str, int | str] | None = None,
    *,
    output: int | str | None = None,
    data: Callable[..., Any] | Iterable[Any] | None = None,
) -> PrecisionChange:
    """Give operators other bits, or floating point; the latest request for a grid counts.

    A grid belongs to all who read it: what is tied to it, as by a concatenation or a shared
    weight, moves along, and int32 biases follow. Ranges of weights are chosen anew; those of
    activations too, from the statistics of the last calibration, if they still are the ones
    that it chose, otherwise from `data`.

    Args:
        sim: the simulation.
        arg: modules, as in `exclude_layers_from_quantization`; or the name of an operator
            ("conv2d"), of an input of the graph, or "output" for what it returns; a node; or
            several of these.
        activation: precision in which they read values: bits, "int8" or "float".
        param: precision of their parameters, or a mapping of name to precision.
        output: precision of the values that they write.
        data: as for `compute_encodings`.

    Returns:
        What changed, and what the target makes of it, which is logged as a warning, too.

    Raises:
        ConfigError: FXQ262 the target does not have it, FXQ263 it is no precision, FXQ264
            nothing is asked for, FXQ266 a grid is frozen.
        SelectorError: FXQ213 or FXQ241 a selector matches nothing, FXQ265 it has no such grid.

    Example:
        >>> import torch
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(4, 3)
        >>> sim = QuantizationSimModel(torch.nn.Sequential(torch.nn.Linear(3, 2)), x, "min_max")
        >>> sim.compute_encodings([x])
        >>> print(set_precision(sim, "linear", activation=16, param=4))
        input_1_stub: 8 bits -> 16 bits
        0.weight: 8 bits -> 4 bits
        0: onnxruntime_x86 computes it in floating point: what it reads has 16 bits, and integer \
kernels take 2 to 8
    """
    require_simulation(sim, "set_precision")
    request = Request(activation=activation, param=param, output=output)
    before = None if data is None else snapshot(sim)
    try:
        with ranges_change(sim.model):
            return _changed(sim.model, sim.target, arg, request, data)
    except BaseException:  # the data may be no data: all or nothing
        if before is not None:
            restore(sim, before)
        raise


def _changed(
    gm: fx.GraphModule, target: Target, selectors: Any, request: Request, data: Any
) -> PrecisionChange:
    asked = list(request.wanted())
    if not asked:
        what = "set_precision was asked for nothing"
        raise ConfigError("FXQ264", what, fix="give activation=, param= or output=")
    sites = find_sites(gm)
    nodes = {n: None for one in several(selectors) for n in _nodes(gm, one)}
    wanted: dict[Site, Precision] = {}
    for kind, name, precision in asked:
        role: Role = "weight" if kind == "param" else "activation"
        target.check_precision(role, precision)
        found = [s for n in nodes for s in _sites(gm, sites, n, kind, name)]
        if not found:
            raise _nothing(list(nodes), kind, name)
        wanted |= dict.fromkeys(found, precision)
    _refuse_frozen(wanted)
    before = {site: site.precision for site in wanted}
    kept = change(gm, target, wanted)
    notes = _recalibrated(gm, kept, data)
    changed = {s: p for s, p in before.items() if s.precision != p}
    notes += _kernels(gm, target, sites, changed)
    note_changes(gm, changed)
    for note in notes:
        log.warning("%s", note)
    texts = {s.name: (shown(p), shown(s.precision)) for s, p in changed.items()}
    return PrecisionChange(texts, tuple(notes))


# --- what is meant -------------------------------------------------------------------------------


def _nodes(gm: fx.GraphModule, selector: Any) -> list[fx.Node]:
    if isinstance(selector, fx.Node):
        return [selector]
    nodes = list(gm.graph.nodes)
    rows = {n: row.name for n in nodes if (row := ops.row_of(n, gm)) is not None}
    try:
        chosen = quantized_modules(gm, selector)
    except SelectorError:
        found = [n for n in nodes if _is_named(n, selector) or rows.get(n) == selector]
        if not found:
            raise
        return found
    return [n for n in nodes if n.op == "call_module" and str(n.target) in chosen]


def _is_named(node: fx.Node, selector: Any) -> bool:
    ends = node.op in ("placeholder", "output")
    return ends and isinstance(selector, str) and selector in (node.name, str(node.target))


def _sites(gm: fx.GraphModule, sites: Sites, node: fx.Node, kind: str, name: str) -> list[Site]:
    if kind == "param":
        return [s for s in sites.weights.get(node, []) if name == "*" or _is_of(s, node, name)]
    if node.op == "placeholder":
        return [s for stub in _behind(gm, node) for s in sites.writes.get(stub, [])]
    if kind == "output":
        own = sites.writes.get(node, [])
        return own or [s for stub in _behind(gm, node) for s in sites.writes.get(stub, [])]
    return sites.reads.get(node, [])


def _is_of(site: Site, node: fx.Node, name: str) -> bool:
    return any(p.key == name and p.path == str(node.target) for p in site.places)


def _behind(gm: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """Stubs that placement inserted behind a value."""
    for user in node.users:
        if user.op == "call_module":
            if getattr(gm.get_submodule(str(user.target)), "placed", False):
                yield user
        elif takes_item(user) is not None:
            yield from _behind(gm, user)


def _nothing(nodes: list[fx.Node], kind: str, name: str) -> SelectorError:
    names = ", ".join(label(n) for n in nodes[:5])
    if kind == "param":
        parameter = "parameter" if name == "*" else f"parameter {name!r}"
        what, fix = f"no {parameter} of {names} has a grid", "choose convolutions or linear layers"
    elif kind == "output":
        what, fix = (
            f"nothing that {names} writes has a grid",
            "rules of a configuration ask for one: ",
        )
        fix += '{"layers": {path: {"output": {"quantized": true}}}}'
    else:
        what = f"nothing that {names} reads has a grid"
        fix = "output= is for what it writes; sim.explain(path) tells who owns a grid"
    return SelectorError("FXQ265", what, at=nodes[0] if nodes else None, fix=fix)


def _refuse_frozen(wanted: Mapping[Site, Precision]) -> None:
    for site, precision in wanted.items():
        if site.quantizer.frozen and precision != site.precision:
            what = f"the grid of {site.name} is frozen: its encoding would not be what it was"
            fix = "leave it out, or call allow_overwrite(True) on its quantizer before"
            raise ConfigError("FXQ266", what, at=site.quantizer.where, fix=fix)


# --- what follows --------------------------------------------------------------------------------


def _recalibrated(gm: fx.GraphModule, kept: list[Site], data: Any) -> list[str]:
    """Choose ranges anew where data are given; notes about those that were kept."""
    if kept and data is not None:
        recalibrate(gm, kept, data)
        return []
    return [
        f"{site.name}: its range was kept; pass data= to have it chosen for its new bits"
        for site in kept
    ]


def recalibrate(gm: fx.GraphModule, sites: Iterable[Site], data: Any) -> None:
    """Choose the ranges of some activations anew from data.

    Args:
        gm: the simulated model.
        sites: whose ranges; all others stay as they are.
        data: as for `compute_encodings`.

    Raises:
        CalibrationError: as for `compute_encodings`.
    """
    with _only(gm, {id(site.quantizer) for site in sites}):
        calibrate.calibrate(gm, data)


@contextmanager
def _only(gm: fx.GraphModule, chosen: set[int]) -> Iterator[None]:
    """Let all other quantizers keep their ranges."""
    others = [m for m in gm.modules() if isinstance(m, QuantizerBase) and id(m) not in chosen]
    flags = [{k: vars(m)[k] for k in _FLAGS if k in vars(m)} for m in others]
    try:
        for module in others:
            module.allow_overwrite(False)
        yield
    finally:
        for module, flag in zip(others, flags, strict=True):
            vars(module).update(flag)


_FLAGS = ("_held", "_overwritable", "_frozen")


def _kernels(
    gm: fx.GraphModule, target: Target, sites: Sites, changed: Mapping[Site, Precision]
) -> list[str]:
    """Operators that the target computes in floating point because of what changed."""
    notes = []
    for node in integer_nodes(gm, target, sites):
        weights = sites.weights.get(node, [])
        reason = float_reason(target, sites.reads[node], weights)
        if reason and any(s in changed for s in (*sites.reads[node], *weights)):
            notes.append(f"{label(node)}: {target.name} computes it in floating point: {reason}")
    return notes


def float_reason(target: Target, reads: Iterable[Site], weights: Iterable[Site]) -> str:
    """Why no integer kernel takes operands as they are; empty where one does."""
    given: list[tuple[Role, Site]] = [("activation", s) for s in reads]
    given += [("weight", s) for s in weights]
    for role, site in given:
        if not target.has_kernel(role, site.precision):
            kind = "its weight" if role == "weight" else "what it reads"
            if site.precision is None:
                return f"{kind} is float"
            kinds = target.weight if role == "weight" else target.activation
            taken = _listed(kinds.kernels)
            return f"{kind} has {site.precision} bits, and integer kernels take {taken}"
    return ""


def _listed(bits: tuple[int, ...]) -> str:
    low, high = min(bits), max(bits)
    whole = bits == tuple(range(low, high + 1)) and len(bits) > 2
    return f"{low} to {high}" if whole else ", ".join(map(str, bits))


def note_changes(gm: fx.GraphModule, changed: Iterable[Site]) -> None:
    """Add what grids were set to, to what `sim.explain` says."""
    for site in changed:
        part = "its weight" if site.role == "weight" else "its grid"
        for path in dict.fromkeys(p.path for p in site.places):
            explain(gm, [path], f"{part} was set to {shown(site.precision)}")
