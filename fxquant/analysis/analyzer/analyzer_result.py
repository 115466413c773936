"""What `QuantAnalyzer.analyze` found, as a text of one screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxquant.io.text_tables import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fxquant.inspection.node_errors import NodeErrors

_SHOWN = 12


@dataclass(frozen=True)
class ModelSensitivity:
    """Evaluations of the whole model.

    Attributes:
        measure: what they are.
        float_model: without quantizers; None where the others are ratios to it.
        all_quantized: with all quantizers.
        weights: with those of parameters alone.
        activations: with those of activations alone.
    """

    measure: str
    float_model: float | None
    all_quantized: float
    weights: float
    activations: float


@dataclass(frozen=True)
class AnalyzerResult:
    """What an analysis found; prints as the layers that matter most.

    Attributes:
        sensitivity: of the whole model.
        enabled: evaluation with the quantizers of one layer alone, by path.
        disabled: evaluation with all quantizers but those of one layer.
        nodes: errors of all nodes.
        results_dir: where the files are.
    """

    sensitivity: ModelSensitivity
    enabled: Mapping[str, float]
    disabled: Mapping[str, float]
    nodes: NodeErrors
    results_dir: str

    def __str__(self) -> str:
        model = self.sensitivity
        parts = {
            "float": model.float_model, "weights quantized": model.weights,
            "activations quantized": model.activations, "all quantized": model.all_quantized,
        }  # fmt: skip
        rows = [(k, f"{v:.4g}") for k, v in parts.items() if v is not None]
        shares = {r.module: r.noise_share for r in self.nodes.rows if r.noise_share is not None}
        worst = sorted(self.enabled, key=self.enabled.__getitem__)[:_SHOWN]
        layers = [
            (
                path, f"{self.enabled[path]:.4g}", f"{self.disabled[path]:.4g}",
                f"{shares[path]:.1%}" if path in shares else "",
            )
            for path in worst
        ]  # fmt: skip
        heads = ("layer", "it alone", "all but it", "share of noise")
        more = len(self.enabled) - len(worst)
        rest = f"\n... and {more} more" if more > 0 else ""
        return (
            f"{table(('measured', model.measure), rows)}\n\n{table(heads, layers)}{rest}\n"
            f"files: {self.results_dir}"
        )
