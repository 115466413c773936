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
    """

    samples: int = 0
    seconds: float = 0.0
    float_seconds: float = 0.0
    peak_bytes: int = 0
    written_bytes: int = 0

    def forward_equivalents(self, batch: int = 16) -> float:
        """What it cost, in forward passes of the float model over `batch` samples."""
        one = self.float_seconds * batch / max(self.samples, 1)
        return self.seconds / one if one > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"{self.samples} samples, {self.seconds:.1f} s of CPU: "
            f"{self.forward_equivalents():.0f} float forward passes of 16 samples"
        )


def layer_lines(
    heads: Sequence[str], rows: Sequence[Sequence[Any]], skipped: Mapping[str, str]
) -> list[str]:
    """A table with a row for each layer, and a line for each that was left as it was."""
    return [table(heads, rows), *(f"{p}: left as it was, {why}" for p, why in skipped.items())]
