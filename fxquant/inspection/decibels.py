"""Energies of signal and noise, added up over values, and their ratio in decibels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.graph.pytree import tensors
from fxquant.quantization.tensor import plain

# float32 sums of so many squares are good to six digits
_PIECE = 1 << 16
# dB that stand for a ratio of no signal at all, or of noise that is not finite
WORST = -300.0


@dataclass
class Power:
    """Energies of a signal and of what differs from it.

    Attributes:
        signal: sum of squares of the float model's elements.
        noise: sum of squares of the differences.
        compared: elements that were compared; infinite and NaN ones of the float model are not.
    """

    signal: float = 0.0
    noise: float = 0.0
    compared: int = 0

    def add(self, exact: Any, found: Any) -> None:
        """Add two values of the same structure; what is no real-valued tensor does not count."""
        for a, b in zip(tensors(exact), tensors(found), strict=False):
            if a.is_floating_point() and b.is_floating_point() and a.shape == b.shape:
                self._add(plain(a).detach(), plain(b).detach())

    def _add(self, exact: Tensor, found: Tensor) -> None:
        signal, noise = energy(exact), energy(significant(found) - significant(exact))
        if not math.isfinite(signal):
            finite = exact.isfinite()
            exact, found = exact[finite], found[finite]
            signal, noise = energy(exact), energy(significant(found) - significant(exact))
        self.signal += signal
        self.noise += noise
        self.compared += exact.numel()

    @property
    def db(self) -> float | None:
        """Signal to noise ratio; None where nothing was compared or nothing differs."""
        if not self.compared or self.noise == 0.0:
            return None
        if self.signal <= 0.0 or not math.isfinite(self.noise):
            return WORST
        return 10.0 * math.log10(self.signal / self.noise)

    @property
    def mse(self) -> float | None:
        """Mean squared difference; None where nothing was compared, or it is not finite."""
        found = self.noise / self.compared if self.compared else math.inf
        return found if math.isfinite(found) else None


def significant(x: Tensor) -> Tensor:
    """In a type whose differences are exact enough: halves as float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def energy(x: Tensor) -> float:
    """Sum of squares."""
    flat = significant(x).reshape(-1)
    return sum(float(torch.dot(piece, piece)) for piece in flat.split(_PIECE))


def shown(db: float | None) -> str:
    """A ratio as a cell of a table."""
    return "" if db is None else f"{db:.1f}"
