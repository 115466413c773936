"""What the calibration audit counts while data run: of inputs, of tensors, of channels.

Everything is a running number or one number a channel, but for the digests of the samples: memory
does not grow with the data otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxquant.graph.pytree import tensors
from fxquant.quantization.digest import tensors_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

_IMAGE = 4  # axes of a tensor whose second axis is known to be channels


@dataclass
class Channels:
    """Running extremes and moments of every channel, float64 `[C]`.

    Attributes:
        count: elements of each channel.
    """

    count: int = 0
    low: Tensor | None = None
    high: Tensor | None = None
    total: Tensor | None = None
    squares: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Count elements: `[N, C]`, finite."""
        rows = rows.detach().double()
        low, high = rows.amin(0), rows.amax(0)
        total, squares = rows.sum(0), rows.square().sum(0)
        self.count += len(rows)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares

    def constant(self) -> Tensor:
        """Which channels had one value only, bool `[C]`."""
        if self.low is None or self.high is None:
            return torch.zeros(0, dtype=torch.bool)
        return self.low == self.high

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of every channel."""
        if self.total is None or self.squares is None:
            return torch.zeros(0), torch.zeros(0)
        mean = self.total / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0.0)


@dataclass
class Values:
    """Running extremes of a tensor, and how many of its values a grid clips.

    Attributes:
        node: the node that makes it.
        quantizer: quantizer of its grid; None in a float model.
        low: smallest value.
        high: largest value.
        elements: how many there were.
        clipped: how many of them lie beyond the grid.
    """

    node: fx.Node
    quantizer: Any = None
    low: float = math.inf
    high: float = -math.inf
    elements: int = 0
    clipped: int = 0

    def add(self, x: Tensor) -> bool:
        """Count a tensor; False if it holds NaN or infinity, which is not counted."""
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.elements += x.numel()
        ends = self._ends()
        if ends is not None and (low < ends[0] or high > ends[1]):
            self.clipped += int(((x < ends[0]) | (x > ends[1])).sum())
        return True

    def _ends(self) -> tuple[float, float] | None:
        """Values beyond these are more than half a step away from the grid; one grid only."""
        scale = None if self.quantizer is None else self.quantizer.get_scale()
        if scale is None or scale.numel() != 1:
            return None
        half = float(scale) / 2
        return float(self.quantizer.get_min()) - half, float(self.quantizer.get_max()) + half


@dataclass
class Input:
    """What came for one input.

    Attributes:
        node: its placeholder.
        low: smallest finite value.
        high: largest finite value.
        nan: samples that hold NaN.
        infinite: samples that hold infinity and are no mask of zeros and negative infinities.
        channels: of images, `[N, C, H, W]` and larger.
    """

    node: fx.Node
    low: float = math.inf
    high: float = -math.inf
    nan: int = 0
    infinite: int = 0
    channels: Channels | None = None

    def add(self, x: Tensor) -> bool:
        """Count a batch; False if it is of no use."""
        rows = x.detach().reshape(len(x), -1) if x.dim() else x.detach().reshape(1, 1)
        finite = rows.isfinite()
        values = rows[finite]
        if values.numel():
            low, high = (float(v) for v in torch.aminmax(values))
            self.low, self.high = min(self.low, low), max(self.high, high)
        if bool(finite.all()):
            if x.dim() >= _IMAGE:
                self.channels = self.channels or Channels()
                self.channels.add(x.movedim(1, -1).reshape(-1, x.shape[1]))
            return True
        zero = rows == 0
        masks = (rows.isneginf() | zero).all(1) & zero.any(1)
        nan, infinite = rows.isnan().any(1), rows.isinf().any(1) & ~masks
        self.nan += int(nan.sum())
        self.infinite += int(infinite.sum())
        return not bool((nan | infinite).any())


@dataclass
class Samples:
    """Samples, and how many are the same as another one or have no content.

    Attributes:
        count: all samples.
        batches: batches that they came in.
        constant: samples whose tensors hold one value each.
    """

    count: int = 0
    batches: int = 0
    constant: int = 0
    _digests: set[str] = field(default_factory=set)

    @property
    def duplicates(self) -> int:
        """Samples that came before."""
        return self.count - len(self._digests)

    @property
    def distinct(self) -> int:
        """Samples that did not come before."""
        return len(self._digests)

    def add(self, values: Sequence[Any], count: int) -> None:
        """Count a batch of `count` samples."""
        given = [t for t in tensors(list(values)) if t.dim() and len(t) == count]
        wide = [t.reshape(count, -1) for t in given if t[0].numel() > 1]
        if wide:
            same = torch.stack([(t == t[:, :1]).all(1) for t in wide]).all(0)
            self.constant += int(same.sum())
        for index in range(count):
            parts = {str(i): t[index] for i, t in enumerate(given)}
            self._digests.add(tensors_digest(parts) if parts else str(self.count + index))
        self.count += count
        self.batches += 1
