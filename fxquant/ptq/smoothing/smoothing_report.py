"""What smoothing did, group by group."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fxquant.io.text_tables import table


@dataclass(frozen=True)
class SmoothedGroup:
    """Layers that read one value.

    Attributes:
        layers: their paths.
        folded_into: paths of the norms and layers that take the factors in; empty if a
            multiplication stands in front of the layers.
        alpha: the exponent; None if the group is as it was.
        error_before: squared error of their quantized outputs on data held out, weighed by what the
            model's output does with it.
        error_after: the same with the factors.
        spread: largest divided by smallest factor.
        reason: why the group is as it was; empty if it was changed.
    """

    layers: tuple[str, ...]
    folded_into: tuple[str, ...]
    alpha: float | None
    error_before: float
    error_after: float
    spread: float
    reason: str

    @property
    def changed(self) -> bool:
        """Whether its channels are divided by factors."""
        return self.alpha is not None


@dataclass(frozen=True)
class SmoothingReport:
    """All groups; `str()` says it for people.

    Attributes:
        groups: in the order of the graph.
        samples: samples that were used.
        weighed: whether errors are weighed by gradients of the model's output; False if it depends
            smoothly on no layer.
        seconds: CPU seconds.
    """

    groups: tuple[SmoothedGroup, ...]
    samples: int
    weighed: bool
    seconds: float

    @property
    def multiplications(self) -> int:
        """How many multiplications were put in front of layers."""
        return sum(g.changed and not g.folded_into for g in self.groups)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self) | {"multiplications": self.multiplications}

    def __str__(self) -> str:
        heads = ("layers", "factors go into", "alpha", "differ by", "held-out error", "of before")
        rows = [
            (
                ", ".join(g.layers), ", ".join(g.folded_into) or "a multiplication",
                f"{g.alpha:.2g}", f"{g.spread:.3g}", f"{g.error_after:.3g}",
                f"{g.error_after / g.error_before:.2f}",
            )
            for g in self.groups
            if g.alpha is not None
        ]  # fmt: skip
        lines = [table(heads, rows)] if rows else []
        left = [g for g in self.groups if not g.changed]
        lines += [f"{', '.join(g.layers)}: left as it was, {g.reason}" for g in left]
        kind = "weighed by gradients" if self.weighed else "not weighed: no gradient"
        lines.append(
            f"{self.samples} samples, {self.seconds:.1f} s of CPU, "
            f"{self.multiplications} multiplications added, errors {kind}"
        )
        return "\n".join(lines)
