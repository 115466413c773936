"""Energies of a signal and of the error it has, added up over values, and their ratio in decibels.

All figures of signal to noise are ratios of sums of squares over all that was compared, never means
of ratios: `10 log10(sum x^2 / sum (x' - x)^2)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

# float32 sums of so many squares are good to six digits
_PIECE = 1 << 16
# dB that stand for infinitely many, where files and tables have no infinity
LIMIT = 300.0


def decibels(signal: float, noise: float) -> float:
    """Signal to noise ratio in dB, from energies.

    Args:
        signal: energy of the signal, in any unit.
        noise: energy of the error, in the same unit; with a signal of one, the share of noise.

    Returns:
        Infinity where there is no error, minus infinity where there is one and no signal, or where
        the error is infinite or NaN.
    """
    if noise == 0.0:
        return math.inf
    if signal <= 0.0 or not math.isfinite(noise):
        return -math.inf
    return 10.0 * math.log10(signal / noise)


def bounded(db: float) -> float:
    """A ratio between -300 and 300 dB: what these stand for is as good as infinite."""
    return max(-LIMIT, min(LIMIT, db))


@dataclass
class Power:
    """Energies of a signal and of what differs from it.

    Sums are taken in the type of what is added, halves in float32, and added up in float64.

    Attributes:
        signal: sum of squares of the exact elements.
        noise: sum of squares of the differences.
        compared: elements that were compared; those that are infinite or NaN in the exact value
            are not.
    """

    signal: float = 0.0
    noise: float = 0.0
    compared: int = 0

    def add(self, exact: Tensor, found: Tensor) -> None:
        """Add the elements of a value and of what stands for it, of the same shape."""
        exact, found = plain(exact).detach(), plain(found).detach()
        signal, noise = energy(exact), energy(significant(found) - significant(exact))
        if not math.isfinite(signal):
            finite = exact.isfinite()
            exact, found = exact[finite], found[finite]
            signal, noise = energy(exact), energy(significant(found) - significant(exact))
        self.signal += signal
        self.noise += noise
        self.compared += exact.numel()

    def add_comparable(self, exact: Iterable[Tensor], found: Iterable[Tensor]) -> None:
        """Add pairs of tensors; a pair of other than real numbers or of two shapes is left out."""
        for a, b in zip(exact, found, strict=False):
            if a.is_floating_point() and b.is_floating_point() and a.shape == b.shape:
                self.add(a, b)

    @property
    def share(self) -> float:
        """Noise as a share of the signal; without a signal 1, or 0 if there is no noise either."""
        return self.noise / self.signal if self.signal > 0 else float(self.noise > 0)

    @property
    def db(self) -> float | None:
        """Ratio, bounded, in dB; None where nothing was compared or nothing differs."""
        if not self.compared or self.noise == 0.0:
            return None
        return bounded(decibels(self.signal, self.noise))

    @property
    def mse(self) -> float | None:
        """Mean squared difference; None where nothing was compared, or it is not finite."""
        found = self.noise / self.compared if self.compared else math.inf
        return found if math.isfinite(found) else None


def significant(x: Tensor) -> Tensor:
    """In a type whose differences are exact enough: halves as float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def energy(x: Tensor) -> float:
    """Sum of squares of all elements."""
    flat = significant(x).reshape(-1)
    return sum(float(torch.dot(piece, piece)) for piece in flat.split(_PIECE))


def shown(db: float | None) -> str:
    """A ratio as a cell of a table."""
    return "" if db is None else f"{db:.1f}"
