"""What AdaRound did, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from fxquant.ptq.walking.walk_cost import Cost, layer_lines


@dataclass(frozen=True)
class AdaroundLayer:
    """One layer. Losses are mean squared errors of the output behind the activation, on data held
    out, with the same scale and bias.

    Attributes:
        path: its path.
        bitwidth: bits of its weight.
        activation: path of the activation that the loss looks behind; "" for none.
        nearest: loss of the nearest integers.
        adaround: loss of the integers that gradient descent found.
        engine: loss of the integers that `reconstruct` finds, by coordinate descent.
        kept: "adaround", or "nearest" where it is better.
        seconds: CPU seconds of the gradient descent.
        engine_seconds: CPU seconds of the coordinate descent.
    """

    path: str
    bitwidth: int
    activation: str
    nearest: float
    adaround: float
    engine: float
    kept: str
    seconds: float
    engine_seconds: float


@dataclass
class AdaroundReport:
    """What AdaRound did.

    Attributes:
        layers: in the order of the graph.
        skipped: why other weights are as they were, by path.
        iterations: steps for each layer.
        cost: what it cost.
    """

    iterations: int
    layers: list[AdaroundLayer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    def __str__(self) -> str:
        heads = ("layer", "bits", "nearest", "adaround", "s", "engine", "s", "kept")
        rows = [
            (r.path, r.bitwidth, f"{r.nearest:.3g}", f"{r.adaround:.3g}", f"{r.seconds:.2f}",
             f"{r.engine:.3g}", f"{r.engine_seconds:.2f}", r.kept)
            for r in self.layers
        ]  # fmt: skip
        first = f"loss on data held out, {self.iterations} iterations"
        lines = [first, *layer_lines(heads, rows, self.skipped)]
        return "\n".join([*lines, str(self.cost)])
