"""What a reconstruction did, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fxquant.ptq.activation_ranges.range_report import RangeReport
from fxquant.ptq.walking.walk_cost import Cost, layer_lines


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        path: its path.
        changed: "weight and bias", "weight", "bias" or "nothing": what was better on the data held
            out.
        loss_before: mean squared error of the output that the weight made before, against the best
            real weight for the quantized inputs; on the data that were solved on.
        loss_after: the same of the weight as it is now.
        error_before: mean squared error of the layer's output against the float model's, on data
            held out, with the weight and bias as they were.
        error_after: the same with what there is now.
        bias_before: mean over channels of the absolute mean error, on the data held out.
        bias_after: the same with what there is now.
        seconds: CPU seconds.
    """

    path: str
    changed: str
    loss_before: float
    loss_after: float
    error_before: float
    error_after: float
    bias_before: float
    bias_after: float
    seconds: float


@dataclass
class ReconstructionReport(Cost):
    """All layers, and what they cost.

    Attributes:
        layers: in the order of the graph.
        skipped: why other quantized weights are as they were, by path.
        ranges: grids of activations whose ranges were looked at, in the order of the graph.
    """

    layers: list[LayerReport] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    ranges: list[RangeReport] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self) | {"forward_equivalents": self.forward_equivalents()}

    def __str__(self) -> str:
        heads = ("layer", "loss", "of before", "held-out error", "of before", "s", "changed")
        rows = [
            (
                r.path, f"{r.loss_after:.3g}", _share(r.loss_after, r.loss_before),
                f"{r.error_after:.3g}", _share(r.error_after, r.error_before), f"{r.seconds:.2f}",
                r.changed,
            )
            for r in self.layers
        ]  # fmt: skip
        lines = layer_lines(heads, rows, self.skipped)
        if self.ranges:
            changed = sum(r.changed for r in self.ranges)
            lines.append(f"{changed} of {len(self.ranges)} ranges of activations were chosen anew")
        return "\n".join([*lines, super().__str__()])


def _share(after: float, before: float) -> str:
    return f"{after / before:.2f}" if before > 0 else "-"
