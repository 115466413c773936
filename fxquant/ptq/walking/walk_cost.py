"""What a walk over the layers cost, as every report of one tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxquant.io.text_tables import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass
class Cost:
    """What a walk cost.

    Attributes:
        samples: samples that were used.
        seconds: CPU seconds in all.
        float_seconds: CPU seconds of the float model's own forward pass over these samples.
        peak_bytes: most bytes of values that were held in memory.
        written_bytes: bytes of values that were written to files.
        least_bytes: what was needed at once beside values that can lie in files: the least
            `max_memory` that can be kept.
        max_memory: the limit; None: there was none.
    """

    samples: int = 0
    seconds: float = 0.0
    float_seconds: float = 0.0
    peak_bytes: int = 0
    written_bytes: int = 0
    least_bytes: int = 0
    max_memory: int | None = None

    def forward_equivalents(self, batch: int = 16) -> float:
        """What it cost, in forward passes of the float model over `batch` samples."""
        one = self.float_seconds * batch / max(self.samples, 1)
        return self.seconds / one if one > 0 else 0.0

    def __str__(self) -> str:
        told = (
            f"{self.samples} samples, {self.seconds:.1f} s of CPU: "
            f"{self.forward_equivalents():.0f} float forward passes of 16 samples"
        )
        if self.max_memory is not None and self.least_bytes > self.max_memory:
            told += (
                f"\nmax_memory of {self.max_memory / 1e6:.0f} MB was exceeded: a layer and one "
                f"batch of its values take {self.least_bytes / 1e6:.0f} MB"
            )
        return told


def layer_lines(
    heads: Sequence[str], rows: Sequence[Sequence[Any]], skipped: Mapping[str, str]
) -> list[str]:
    """A table with a row for each layer, and a line for each that was left as it was."""
    return [table(heads, rows), *(f"{p}: left as it was, {why}" for p, why in skipped.items())]
