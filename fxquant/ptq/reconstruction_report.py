"""What a reconstruction did, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fxquant.io.text_tables import table


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
class ReconstructionReport:
    """All layers.

    Attributes:
        layers: in the order of the graph.
        skipped: why other quantized weights are as they were, by path.
        samples: samples that were used.
        seconds: CPU seconds in all.
        float_seconds: CPU seconds of the float model's own forward pass over these samples.
        peak_bytes: most bytes of values that were held in memory.
        written_bytes: bytes of values that were written to files.
    """

    layers: list[LayerReport] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    samples: int = 0
    seconds: float = 0.0
    float_seconds: float = 0.0
    peak_bytes: int = 0
    written_bytes: int = 0

    def forward_equivalents(self, batch: int = 16) -> float:
        """What it cost, in forward passes of the float model over `batch` samples."""
        one = self.float_seconds * batch / max(self.samples, 1)
        return self.seconds / one if one > 0 else 0.0

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
        lines = [table(heads, rows)]
        lines += [f"{path}: left as it was, {reason}" for path, reason in self.skipped.items()]
        lines.append(
            f"{self.samples} samples, {self.seconds:.1f} s of CPU: "
            f"{self.forward_equivalents():.0f} float forward passes of 16 samples"
        )
        return "\n".join(lines)


def _share(after: float, before: float) -> str:
    return f"{after / before:.2f}" if before > 0 else "-"
