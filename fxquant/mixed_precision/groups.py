"""Groups of grids that take the same precision, and the options that each of them has.

An operator's kernel takes its operands and its weight in certain combinations, so they belong
together; so do all operators that read the same grid. What no integer operator reads, such as the
output of the last kernel, is a group of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fxquant.graph.rewriter import label
from fxquant.mixed_precision.bit_candidates import KEPT, Candidate
from fxquant.mixed_precision.residual import Stream, streams_of
from fxquant.precision.sites import Site, Sites, integer_nodes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import fx

    from fxquant.precision.kinds import Precision
    from fxquant.targets import Target

_SHOWN = 2


@dataclass(frozen=True)
class Option:
    """What a group may be.

    Attributes:
        activation: precision of the activations; "kept" where there are none that may change.
        weight: the same of the weights.
        residual: precision of what sums read; "kept": that of the activations.
    """

    activation: Precision | Literal["kept"]
    weight: Precision | Literal["kept"]
    residual: Precision | Literal["kept"] = KEPT

    def precision(self, site: Site, before: Precision) -> Precision:
        """What a site of the group has with this option."""
        wanted = self.activation if site.role == "activation" else self.weight
        return before if wanted == KEPT or site.quantizer.frozen else wanted

    def __str__(self) -> str:
        parts = [("A", self.activation), ("W", self.weight), ("R", self.residual)]
        found = [(letter, p) for letter, p in parts if p != KEPT]
        if all(p is None for _, p in found):
            return "float"
        return " ".join(f"{letter}{'float' if p is None else p}" for letter, p in found)


@dataclass(eq=False)
class Group:
    """Grids that move together.

    Attributes:
        name: the operators that read them.
        nodes: these operators.
        sites: the grids.
        before: precision of every grid before the search.
        options: what it may be.
        offered: how many of them may be chosen; another one is there to compare with.
        streams: what of it sums read.
    """

    name: str
    nodes: list[fx.Node]
    sites: list[Site]
    before: Mapping[Site, Precision] = field(default_factory=dict)
    options: tuple[Option, ...] = ()
    offered: int = 0
    streams: Sequence[Stream] = ()

    def free(self, role: str) -> bool:
        """Whether it has grids of this role that may change."""
        return any(s.role == role and not s.quantizer.frozen for s in self.sites)

    def precisions(self, option: Option) -> dict[Site, Precision]:
        """Precision of every grid with an option."""
        return {site: option.precision(site, self.before[site]) for site in self.sites}

    def option_of(self, candidate: Candidate) -> Option:
        """What a candidate means here."""
        return Option(
            candidate.activation if self.free("activation") else KEPT,
            candidate.weight if self.free("weight") else KEPT,
            candidate.residual if self.streams else KEPT,
        )

    def is_integer(self, option: Option, target: Target) -> bool:
        """Whether integer kernels take all its grids with this option."""
        found = self.precisions(option).items()
        return option.residual == KEPT and all(target.has_kernel(s.role, p) for s, p in found)


def find_groups(
    gm: fx.GraphModule, target: Target, candidates: Sequence[Candidate], sites: Sites
) -> list[Group]:
    """The groups of a simulation that have a choice, in the order of the graph."""
    there = [s for s in sites if s.precision is not None]
    nodes = [
        n for n in integer_nodes(gm, target, sites)
        if all(s.precision is not None for s in _touched(sites, n))
    ]  # fmt: skip
    sets = _united(there, sites, nodes)
    found = []
    for members in sets:
        users = [n for n in nodes if any(s in members for s in _touched(sites, n))]
        group = Group(_name(users, members), users, members, {s: s.precision for s in members})
        group.streams = streams_of(gm, sites, users, members)
        if group.free("activation") or group.free("weight"):
            _offer(group, target, candidates)
            found.append(group)
    order = {n: i for i, n in enumerate(gm.graph.nodes)}
    return sorted(found, key=lambda g: order[g.nodes[0]] if g.nodes else len(order))


def _offer(group: Group, target: Target, candidates: Sequence[Candidate]) -> None:
    """Give a group its options; the target's too, where none is computed in integers."""
    options = dict.fromkeys(map(group.option_of, candidates))
    group.offered = len(options)
    if not any(group.is_integer(option, target) for option in options):
        usual = group.option_of(Candidate(*target.bitwidths))
        if group.is_integer(usual, target):
            options[usual] = None
    group.options = tuple(options)


def _touched(sites: Sites, node: fx.Node) -> list[Site]:
    return [*sites.reads.get(node, []), *sites.weights.get(node, [])]


def _united(there: list[Site], sites: Sites, nodes: Iterable[fx.Node]) -> list[list[Site]]:
    """Sets of sites that an operator reads together, or that share a parameter."""
    parent: dict[Site, Site] = {s: s for s in there}

    def find(site: Site) -> Site:
        while parent[site] is not site:
            site = parent[site]
        return site

    together = [[s for s in _touched(sites, n) if s in parent] for n in nodes]
    owners: dict[int, list[Site]] = {}
    for site in there:
        for tensor in site.stored:
            owners.setdefault(id(tensor), []).append(site)
    for members in (*together, *owners.values()):
        for other in members[1:]:
            parent[find(other)] = find(members[0])
    sets: dict[Site, list[Site]] = {}
    for site in there:
        sets.setdefault(find(site), []).append(site)
    return list(sets.values())


def _name(nodes: list[fx.Node], members: list[Site]) -> str:
    if not nodes:
        return f"output of {members[0].name}"
    names = [label(n) for n in nodes]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
