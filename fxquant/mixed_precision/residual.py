"""The residual stream in a precision of its own: sums read it, integer kernels a grid of it.

Before: `conv -> [8 bits] -> add`, `conv -> [8 bits] -> conv`.
After:  `conv -> [16 bits or float] -> add`, `conv -> [16 bits or float] -> [8 bits] conv`.

A sum of values of one size and another of many loses the digits of the small ones on 8 bits, and a
stream of sums loses them again and again. Its consumers' own grids lie at their inputs then.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fxquant import ops
from fxquant.precision.change import set_bits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import fx

    from fxquant.precision.kinds import Precision
    from fxquant.precision.sites import Site, Sites
    from fxquant.quantization import QuantizerBase
    from fxquant.targets import Target


@dataclass(eq=False)
class Stream:
    """One value that sums read.

    Attributes:
        site: its grid.
        consumers: registries and positions of the integer operators that are no sums.
    """

    site: Site
    consumers: list[tuple[Any, int]]
    _wide: dict[int, QuantizerBase] = field(default_factory=dict)

    @property
    def quantizers(self) -> list[QuantizerBase]:
        """Quantizers of the sums."""
        return list(self._wide.values())

    def prepare(self, bits: int, target: Target) -> list[Site]:
        """Make the grid of the sums; returns sites whose range is yet to be calibrated."""
        if bits in self._wide:
            return []
        made = copy.copy(self.site)
        made.quantizer = copy.deepcopy(self.site.quantizer)
        kept = not set_bits(made, bits, target)
        self.join()
        self._wide[bits] = made.quantizer
        return [made] if kept else []

    def part(self, precision: Precision) -> None:
        """Give the sums a precision of their own."""
        for place in self.site.places:
            place.home[place.key] = None if precision is None else self._wide[precision]
        for home, index in self.consumers:
            home[index] = self.site.quantizer

    def join(self) -> None:
        """Let all read one grid again."""
        for place in self.site.places:
            place.home[place.key] = self.site.quantizer
        for home, index in self.consumers:
            if index < len(home):
                home[index] = None


def streams_of(
    gm: fx.GraphModule, sites: Sites, nodes: Iterable[fx.Node], members: Iterable[Site]
) -> list[Stream]:
    """Values that sums read and that lie on a grid of their own.

    Args:
        gm: the simulated model.
        sites: its grids.
        nodes: operators that are computed in integers.
        members: grids that are asked about.
    """
    nodes = list(nodes)
    sums = [n for n in nodes if ops.is_sum(n, gm)]
    read = {s for n in sums for s in sites.reads[n]}
    found = []
    for site in members:
        alone = len(site.places) == 1 and not site.quantizer.frozen
        if site in read and alone and site.role == "activation":
            consumers = list(_consumers(gm, sites, [n for n in nodes if n not in sums], site))
            found.append(Stream(site, consumers))
    return found


def _consumers(
    gm: fx.GraphModule, sites: Sites, nodes: list[fx.Node], site: Site
) -> Iterator[tuple[Any, int]]:
    for node in nodes:
        for index, read in sites.operands[node]:
            if read is site:
                module: Any = gm.get_submodule(str(node.target))
                yield module.input_quantizers, index
