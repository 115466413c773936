"""Grids of a simulation, where their quantizers stand, and which operators read them.

A *site* is one grid: the quantizer of a value or of a weight, with all places in which it stands. A
quantizer that several modules share, as around a concatenation, is one site.

A site that was set to floating point has no quantizer in its places. What stood there is kept
beside them (`aside`), so that it can come back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant import ops
from fxquant.nn import QuantizationMixin
from fxquant.nn.calibration import weight_of
from fxquant.nn.containers import QuantizerDict, QuantizerList
from fxquant.placement.dataflow import (
    holds_tensors,
    numbered_operands,
    operands,
    resolve_grids,
)
from fxquant.placement.shift_constraints import written_grid
from fxquant.quantization import QuantizerBase
from fxquant.quantization.affine import AffineQuantizer, BiasQuantizeDequantize

if TYPE_CHECKING:
    from torch import Tensor

    from fxquant.precision.kinds import Precision, Role
    from fxquant.targets import Target

Home = QuantizerList | QuantizerDict
_HOMES = ("input_quantizers", "output_quantizers", "param_quantizers")


@dataclass(frozen=True, eq=False)
class Place:
    """Where a quantizer stands, or stood.

    Attributes:
        path: path of the module.
        home: its registry, a `QuantizerList` or `QuantizerDict`.
        key: position or name in it.
    """

    path: str
    home: Any
    key: int | str

    @property
    def quantizer(self) -> QuantizerBase | None:
        """What stands there; None for floating point."""
        return self.home[self.key]  # type: ignore[no-any-return]

    def take_out(self) -> None:
        """Let the value be in floating point; what stood there is kept beside it."""
        if self.quantizer is not None:
            aside = vars(self.home).setdefault("aside", {})
            aside[self.key] = self.quantizer
            self.home[self.key] = None

    def put(self, quantizer: QuantizerBase) -> None:
        """Put a quantizer there."""
        self.home[self.key] = quantizer


@dataclass(eq=False)
class Site:
    """One grid.

    Attributes:
        quantizer: its quantizer, also while it is taken out.
        role: "activation" or "weight".
        name: path of the first module that holds it, with the parameter for weights.
        places: where it stands.
        tensors: the parameters that lie on it, as they are quantized; none for activations.
        stored: the parameters as they are stored.
    """

    quantizer: AffineQuantizer
    role: Role
    name: str
    places: list[Place] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    stored: list[Tensor] = field(default_factory=list)

    @property
    def precision(self) -> Precision:
        """Its bits; None while it is taken out."""
        there = any(place.quantizer is self.quantizer for place in self.places)
        return self.quantizer.bitwidth if there else None


@dataclass(eq=False)
class Sites:
    """All sites of a simulation, by node.

    Attributes:
        reads: node -> sites of the values that it reads.
        writes: node -> sites of its own values.
        weights: node -> sites of its parameters.
        operands: node -> position among the tensors that it reads, as in the quantizers of its
            module's inputs, and site.
    """

    reads: dict[fx.Node, list[Site]] = field(default_factory=dict)
    writes: dict[fx.Node, list[Site]] = field(default_factory=dict)
    weights: dict[fx.Node, list[Site]] = field(default_factory=dict)
    operands: dict[fx.Node, list[tuple[int, Site]]] = field(default_factory=dict)
    _of: dict[int, Site] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._of.values())

    def of(self, quantizer: object) -> Site | None:
        """The site of a quantizer."""
        return self._of.get(id(quantizer))

    def add(
        self, place: Place, quantizer: Any, tensor: Tensor | None, stored: Tensor | None
    ) -> Site:
        """Count a quantizer that stands, or stood, in a place.

        Args:
            place: the place.
            quantizer: the quantizer.
            tensor: a parameter as it is quantized; None for activations.
            stored: the same as it is stored.
        """
        name = place.path if tensor is None else f"{place.path}.{place.key}"
        role: Role = "activation" if tensor is None else "weight"
        site = self._of.setdefault(id(quantizer), Site(quantizer, role, name))
        site.places.append(place)
        if tensor is not None and stored is not None and all(t is not stored for t in site.stored):
            site.tensors.append(tensor)
            site.stored.append(stored)
        return site


def find_sites(gm: fx.GraphModule) -> Sites:
    """The sites of a simulated graph, those that were set to floating point among them.

    Left out is what has no bits to choose: biases, narrow floating-point formats, blocks with
    grids in groups.
    """
    found = Sites()
    for node in gm.graph.nodes:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, QuantizationMixin):
            _collect(found, node, module)
    with _all_in_place(found):
        grids = resolve_grids(gm)
        for node in gm.graph.nodes:
            read = ((index, found.of(q)) for index, q in _read(gm, node, grids))
            found.operands[node] = [(index, site) for index, site in read if site is not None]
            found.reads[node] = _unique(site for _, site in found.operands[node])
    return found


def _collect(found: Sites, node: fx.Node, module: QuantizationMixin) -> None:
    path = str(node.target)
    for kind in _HOMES:
        home: Any = getattr(module, kind)
        for key in _keys(home):
            quantizer = home[key] or vars(home).get("aside", {}).get(key)
            tensor = weight_of(module, str(key)) if kind == "param_quantizers" else None
            if not _has_bits(quantizer) or (kind == "param_quantizers" and tensor is None):
                continue
            if key == "bias":
                continue
            stored = None if tensor is None else _stored(module, str(key))
            site = found.add(Place(path, home, key), quantizer, tensor, stored)
            if kind != "input_quantizers":
                by = found.weights if tensor is not None else found.writes
                by.setdefault(node, []).append(site)


def _stored(module: QuantizationMixin, name: str) -> Tensor | None:
    found = module._parameters.get(name)
    return found if found is not None else module._buffers.get(name)


def _keys(home: Home) -> list[Any]:
    return list(home) if isinstance(home, QuantizerDict) else list(range(len(home)))


def _has_bits(quantizer: Any) -> bool:
    if not isinstance(quantizer, AffineQuantizer) or isinstance(quantizer, BiasQuantizeDequantize):
        return False
    return getattr(quantizer, "block_grouping", None) is None


@contextmanager
def _all_in_place(found: Sites) -> Iterator[None]:
    """Every site in its places, so that the graph shows who reads it."""
    out = [(p, s.quantizer) for s in found for p in s.places if p.quantizer is None]
    for place, quantizer in out:
        place.put(quantizer)
    try:
        yield
    finally:
        for place, _ in out:
            place.home[place.key] = None


def _read(gm: fx.GraphModule, node: fx.Node, grids: Any) -> Iterator[tuple[int, Any]]:
    """Quantizers of the values that a node reads, with the position of each among its tensors."""
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    own = getattr(module, "input_quantizers", ())
    for first, operand in numbered_operands(node):
        if not holds_tensors(operand):
            continue  # a size takes no position: the next one is that of another operand
        for index, quantizer in enumerate(grids.get(operand, ()), first):
            read = own[index] if index < len(own) else None
            yield index, quantizer if read is None else read


def _unique(sites: Iterator[Site]) -> list[Site]:
    return list({id(s): s for s in sites}.values())


def stored_bytes(
    gm: fx.GraphModule, sites: Sites, left_out: Collection[int] = ()
) -> tuple[float, float]:
    """Bytes of a simulation's parameters in floating point and on their grids, each once.

    Steps and zero points are left out.

    Args:
        gm: the simulated graph.
        sites: its grids.
        left_out: `id` of parameters that do not count on grids.
    """
    inner = {id(p) for m in gm.modules() if isinstance(m, QuantizerBase) for p in m.parameters()}
    kinds = {id(t): s.precision for s in sites for t in s.stored}
    plain = on_grids = 0
    for parameter in gm.parameters():
        if id(parameter) in inner:
            continue
        bits = 8 * parameter.element_size()
        plain += parameter.numel() * bits
        if id(parameter) not in left_out:
            on_grids += parameter.numel() * (kinds.get(id(parameter)) or bits)
    return plain / 8, on_grids / 8


def integer_nodes(gm: fx.GraphModule, target: Target, sites: Sites) -> list[fx.Node]:
    """Operators that are computed in integers where all sites are, in the order of the graph.

    The target computes such an operator with these arguments, its operands and its weight lie on
    grids, and so does what it writes, if its kernel cannot write floats.
    """
    with _all_in_place(sites):
        grids = resolve_grids(gm)
        return [n for n in gm.graph.nodes if _is_integer(gm, target, sites, n, grids)]


def _is_integer(
    gm: fx.GraphModule, target: Target, sites: Sites, node: fx.Node, grids: Any
) -> bool:
    row = ops.row_of(node, gm)
    rule = target.operators.get(row.name) if row is not None else None
    if row is None or rule is None or node.op != "call_module":
        return False
    given = ops.arguments(node, gm)
    if rule.violation(given) is not None:
        return False
    module = gm.get_submodule(str(node.target))
    own = isinstance(module, QuantizationMixin) and any(module.input_quantizers.active())
    on_grids = own or all(grids[operand][0] is not None for _, operand in operands(node, gm))
    weighted = row.weight_axis is not None and hasattr(given.get("weight"), "shape")
    if not on_grids or (weighted and not sites.weights.get(node)):
        return False
    return rule.output == "optional" or written_grid(node, grids) is not None
