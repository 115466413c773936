"""Which factors channels between layers get: equal ranges of weights, or the least noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.ptq.cross_layer.channel_statistics import NOTHING
from fxquant.ptq.cross_layer.rounding_noise import RoundingNoise, least_noise

if TYPE_CHECKING:
    from collections.abc import Container

    from fxquant.ptq.cross_layer.channel_spaces import ChannelSpaces, Space
    from fxquant.ptq.cross_layer.channel_statistics import ChannelStatistics
    from fxquant.ptq.float_graphs.planned_grids import PlannedGrids

# factors that change ranges by less than a thousandth gain nothing on a grid of 8 bits
_SETTLED, _SWEEPS = 1e-3, 100
# how many times the noise of layers may be where the simulation is known: with channels that are
# known, and with guessed ones
_KNOWN, _UNKNOWN = 0.95, 0.7
# and where it is not: 0.3 dB; half as much again where one grid for a tensor gains 6 dB, or where
# channels are guessed
_LITTLE, _MOST, _LARGE = 1.07, 1.5, 4.0
# a channel this much smaller than the largest one computes nothing
_DEAD = 1e-12


class FactorChoice:
    """Chooses factors that the noise of rounding falls with.

    Args:
        spaces: channels between layers.
        known: what is known of the values.
        grids: those of the simulation, or those that nothing shall be lost on.
        single: others that weights may lie on, one for a tensor; None: the simulation is known.
    """

    def __init__(
        self,
        spaces: ChannelSpaces,
        known: ChannelStatistics,
        grids: PlannedGrids,
        single: PlannedGrids | None = None,
    ) -> None:
        self.spaces, self.known = spaces, known
        self.noise = RoundingNoise(spaces, known, grids)
        self.single = None if single is None else RoundingNoise(spaces, known, single)
        self.ones = torch.ones(spaces.count, dtype=torch.float64)

    def run(self) -> tuple[Tensor, dict[int, str]]:
        """The factors, and why spaces are not scaled that could be."""
        return self._balanced() if not self.known.known else self._least()

    def _balanced(self) -> tuple[Tensor, dict[int, str]]:
        """Equal ranges of weights, but where noise grows."""
        refused: dict[int, str] = {}
        while True:
            factors = Balance(self.spaces, refused).run()
            found = self._offenders(factors)
            if not found:
                return factors, refused
            refused |= found  # factors of the others are not what they were

    def _least(self) -> tuple[Tensor, dict[int, str]]:
        """Factors with the least noise."""
        free = [s.factors for s in self.spaces.spaces if _is_scalable(self.spaces, s)]
        if not free:
            return self.ones, {}
        noises = [n for n in (self.noise, self.single) if n is not None]
        starts = self.ones, Balance(self.spaces).run()
        tried = [least_noise(noises, start, torch.cat(free)) for start in starts]
        every = set(range(len(self.spaces.layers)))

        def cost(factors: Tensor) -> float:
            return math.prod(noise.of(every, factors) for noise in noises)

        factors = min(tried, key=cost)
        refused: dict[int, str] = {}
        while found := self._offenders(factors):
            for number in found:
                factors[self.spaces.spaces[number].factors] = 1.0
            refused |= found
        return factors, refused

    def _offenders(self, factors: Tensor) -> dict[int, str]:
        """Spaces around which there is more noise than may be, and how much that is."""
        found: dict[int, str] = {}
        for number, space in enumerate(self.spaces.spaces):
            if not bool((factors[space.factors] != 1).any()):
                continue
            several = all(map(self.noise.is_per_channel, space.consumers))
            if not several and not self.known.known:
                continue
            growth = self._growth(self.noise, space, factors)
            most = _KNOWN if self.known.known else _UNKNOWN
            if self.single is not None:
                gains = self._growth(self.single, space, factors) * _LARGE < 1
                most = _MOST if gains or not self.known.known else _LITTLE
            if growth > most:
                text = f"errors would be {growth:.2g} times"
                found[number] = f"with a grid for every channel {text}" if several else text
        return found

    def _growth(self, noise: RoundingNoise, space: Space, factors: Tensor) -> float:
        """How many times the noise of the layers around a space is with its factors."""
        layers, without = {*space.producers, *space.consumers}, factors.clone()
        without[space.factors] = 1.0
        return noise.of(layers, factors) / max(noise.of(layers, without), NOTHING)


class Balance:
    """Chooses factors, one group of channels after the other, until they settle."""

    def __init__(self, spaces: ChannelSpaces, refused: Container[int] = ()) -> None:
        self.spaces = spaces
        self.chosen = [
            s
            for number, s in enumerate(spaces.spaces)
            if number not in refused and _is_scalable(spaces, s)
        ]
        self.factors = torch.ones(spaces.count, dtype=torch.float64)
        self.sizes = [None if m.is_norm else m.magnitudes().cpu() for m in spaces.layers]

    def run(self) -> Tensor:
        """The factors, float64 `[count]`."""
        for _ in range(_SWEEPS):
            moved = [self._balance(space) for space in self.chosen]
            if max(moved, default=0.0) < _SETTLED:
                break
        return self.factors

    def _balance(self, space: Space) -> float:
        made = self._ranges(space.producers, outputs=True)[space.factors]
        read = self._ranges(space.consumers, outputs=False)[space.factors]
        found = (made / read).sqrt()
        alive = (made > _DEAD * made.max()) & (read > _DEAD * read.max()) & found.isfinite()
        steps = torch.where(alive, found, torch.ones_like(found))
        self.factors[space.factors] *= steps
        return float(steps.log().abs().max())

    def _ranges(self, layers: tuple[int, ...], *, outputs: bool) -> Tensor:
        """Largest magnitude of the weights of every factor's channels."""
        ranges = torch.zeros_like(self.factors)
        for index in layers:
            sizes = self.sizes[index]
            if sizes is None:
                continue
            groups = sizes.shape[0]
            made = self.factors[self.spaces.outputs[index]].reshape(groups, -1, 1)
            read = self.factors[self.spaces.inputs[index]].reshape(groups, 1, -1)
            largest = (sizes / made * read).amax(2 if outputs else 1).reshape(-1)
            places = self.spaces.outputs[index] if outputs else self.spaces.inputs[index]
            ranges.scatter_reduce_(0, places, largest, "amax")
        return ranges


def _is_scalable(spaces: ChannelSpaces, space: Space) -> bool:
    return bool(len(space.factors)) and not has_norm(spaces, space)


def has_norm(spaces: ChannelSpaces, space: Space) -> bool:
    """Whether the affine part of a norm makes some of the channels."""
    return any(spaces.layers[p].is_norm for p in space.producers)
