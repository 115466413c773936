"""What a choice of activation ranges did, grid by grid."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from fxquant.io.text_tables import table


@dataclass(frozen=True)
class RangeReport:
    """One grid.

    Attributes:
        name: the quantizer's path.
        tensor: what lies on it.
        chosen: the candidate that was taken; "as it was" if none was better.
        before: ends of the range as it was.
        after: ends of the range as it is.
        cost_before: what the range as it was costs at the model's outputs, on the batches held out,
            by gradients, or its squared error on samples held out, where it was chosen along a
            reconstruction; only ratios mean something.
        cost_after: the same of the range as it is.
    """

    name: str
    tensor: str
    chosen: str
    before: tuple[float, float]
    after: tuple[float, float]
    cost_before: float
    cost_after: float

    @property
    def changed(self) -> bool:
        """Whether the range is another one."""
        return self.before != self.after


@dataclass
class ActivationRangesReport:
    """All grids of activations.

    Attributes:
        ranges: in the order of the graph.
        skipped: why other ranges are as they were, by the quantizer's path.
        undone: paths of ranges that cost less alone, with which the outputs were no better.
        without_gradients: why nothing could be measured; empty if it could.
        sqnr_before: dB that the model's outputs kept of the float model's, on all batches.
        sqnr_after: the same with the ranges as they are.
        held_out: batches that were held out; 0: there was only one, which is judged by.
        samples: samples that were used.
        seconds: CPU seconds.
        peak_bytes: most bytes of values that were held in memory.
        written_bytes: bytes of values that were written to files.
    """

    ranges: list[RangeReport] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)
    without_gradients: str = ""
    sqnr_before: float = math.nan
    sqnr_after: float = math.nan
    held_out: int = 0
    samples: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    written_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        heads = ("tensor", "chosen", "range before", "range now", "held-out cost")
        rows = [
            (
                r.tensor, r.chosen, _ends(r.before), _ends(r.after),
                f"{r.cost_after / r.cost_before:.2f} of before" if r.cost_before > 0 else "-",
            )
            for r in self.ranges
        ]  # fmt: skip
        lines = [table(heads, rows)]
        lines += [f"{name}: left as it was, {reason}" for name, reason in self.skipped.items()]
        lines += [f"{name}: put back, the outputs were no better" for name in self.undone]
        if self.without_gradients:
            lines.append(f"nothing was changed: {self.without_gradients}")
        where = f"{self.held_out} batch(es) held out" if self.held_out else "the one batch"
        lines.append(
            f"the outputs keep {self.sqnr_after:.1f} dB of the float model's, "
            f"{self.sqnr_before:.1f} dB before, on {self.samples} samples; "
            f"single ranges were judged on {where}; {self.seconds:.1f} s of CPU"
        )
        return "\n".join(lines)


def _ends(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.4g} .. {ends[1]:.4g}"
