"""A simulation that takes one choice of precisions after the other.

Every range of every option is found once, before the search. A choice then depends on nothing but
itself: not on the choices that were tried before, and not on whether a search was interrupted.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxquant.graph.pass_infra import set_state, state_of
from fxquant.mixed_precision.bit_candidates import KEPT
from fxquant.nn.modes import quantizers_removed
from fxquant.precision.change import put, set_bits, settle_biases
from fxquant.precision.requests import recalibrate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fxquant.mixed_precision.groups import Group
    from fxquant.precision.kinds import Precision
    from fxquant.precision.sites import Site
    from fxquant.quantization import QuantizerBase
    from fxquant.sim import QuantizationSimModel

Choice = tuple[int, ...]
"""The option of every group, by its index."""


class Trials:
    """Applies choices to a simulation.

    Args:
        sim: the calibrated simulation.
        groups: its groups, with their options.
        data: where ranges must be calibrated anew for some bits; None: they are kept then.
    """

    def __init__(self, sim: QuantizationSimModel, groups: Sequence[Group], data: Any) -> None:
        self.sim, self.gm, self.groups = sim, sim.model, groups
        self._ranges: dict[tuple[Site, int], tuple[Tensor, Tensor]] = {}
        self.why = state_of(self.gm).why
        self._collect(data)

    def _collect(self, data: Any) -> None:
        options = [(group, option) for group in self.groups for option in group.options]
        wanted: dict[int, dict[Site, None]] = {}
        for group, option in options:
            for site, precision in group.precisions(option).items():
                if precision is not None:
                    wanted.setdefault(precision, {})[site] = None
        for bits, sites in wanted.items():
            self._find_ranges(bits, list(sites), data)
        for group, option in options:
            if isinstance(option.residual, int):
                self._prepare(group, option.residual, data)

    def _find_ranges(self, bits: int, sites: list[Site], data: Any) -> None:
        """Find the ranges of grids with these bits, and leave the grids as they were."""
        before = {s: (s.precision, *_range(s)) for s in sites}
        kept = [s for s in sites if not set_bits(s, bits, self.sim.target)]
        if kept and data is not None:
            recalibrate(self.gm, kept, data)
        for site, (precision, low, high) in before.items():
            self._ranges[site, bits] = _range(site)
            set_bits(site, precision, self.sim.target)
            site.quantizer.set_range(low, high)

    def _prepare(self, group: Group, bits: int, data: Any) -> None:
        """Make the grids of what sums read."""
        for stream in group.streams:
            kept = stream.prepare(bits, self.sim.target)
            if kept and data is not None:
                stream.part(bits)
                recalibrate(self.gm, kept, data)
                stream.join()

    def apply(self, choice: Choice) -> None:
        """Give the simulation a choice."""
        for group, index in zip(self.groups, choice, strict=True):
            self._apply(group, index)
        settle_biases(self.gm)
        set_state(self.gm, why=self.why)

    def _apply(self, group: Group, index: int) -> None:
        option = group.options[index]
        for stream in group.streams:
            stream.join()
        for site, precision in group.precisions(option).items():
            self._set(site, precision)
        if option.residual != KEPT:
            for stream in group.streams:
                stream.part(option.residual)

    def _set(self, site: Site, precision: Precision) -> None:
        put(site, precision, self.sim.target)
        if precision is not None:
            # also where the bits are the same: a bias may have widened it
            low, high = self._ranges[site, precision]
            if not (torch.equal(site.quantizer.min, low) and torch.equal(site.quantizer.max, high)):
                site.quantizer.set_range(low, high)

    @contextmanager
    def alone(self, group: Group, index: int) -> Iterator[None]:
        """One group with an option, all else in floating point."""
        self._apply(group, index)
        settle_biases(self.gm)
        set_state(self.gm, why=self.why)
        keep = {id(site.quantizer) for site in group.sites}
        keep |= {id(quantizer) for stream in group.streams for quantizer in stream.quantizers}
        paths = {str(node.target) for node in group.nodes}

        def kept(path: str, _: str, key: Any, quantizer: QuantizerBase) -> bool:
            return id(quantizer) in keep or (key == "bias" and path in paths)

        with quantizers_removed(self.gm, kept):
            yield

    @contextmanager
    def without_grids(self) -> Iterator[None]:
        """The float model."""
        with quantizers_removed(self.gm, lambda *_: False):
            yield


def _range(site: Site) -> tuple[Tensor, Tensor]:
    quantizer = site.quantizer
    return quantizer.min.detach().clone(), quantizer.max.detach().clone()
