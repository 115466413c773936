"""Ranges that are tried for one grid: those of analyzers, and shares of what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.quantization import QuantScheme
from fxquant.quantization.analyzers import EncodingAnalyzer, MinMax, Percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.quantization.affine import AffineQuantizer
    from fxquant.quantization.analyzers import Statistics

Candidate = QuantScheme | str | EncodingAnalyzer | float

#: what is tried by default
CANDIDATES: tuple[Candidate, ...] = (
    "min_max", "tf_enhanced", "mse", Percentile(99.0), Percentile(99.9), Percentile(99.99),
    Percentile(99.999), 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2,
)  # fmt: skip


@dataclass(frozen=True)
class RangeRule:
    """One way to choose a range.

    Attributes:
        name: how a report calls it.
        analyzer: what chooses over statistics.
        share: what its range is multiplied with.
    """

    name: str
    analyzer: EncodingAnalyzer
    share: float = 1.0


def rules_of(candidates: Sequence[Candidate]) -> tuple[RangeRule, ...]:
    """The rules that candidates stand for.

    Raises:
        ConfigError: FXQ293, there is none, or one is no scheme, analyzer or share.
    """
    if isinstance(candidates, str) or not candidates:
        what = f"the candidates are {candidates!r}"
        fix = 'pass a sequence, such as ("min_max", "mse", 0.9)'
        raise ConfigError("FXQ293", what, fix=fix)
    return tuple(map(_rule, candidates))


def _rule(candidate: Any) -> RangeRule:
    if isinstance(candidate, str | QuantScheme):
        scheme = QuantScheme(candidate)
        return RangeRule(scheme.value, scheme.analyzer())
    if isinstance(candidate, Percentile):
        return RangeRule(f"percentile {candidate.percentile:g}", candidate)
    if isinstance(candidate, EncodingAnalyzer):
        return RangeRule(type(candidate).__name__, candidate)
    number = isinstance(candidate, int | float) and not isinstance(candidate, bool)
    if not number or not 0.0 < candidate <= 1.0:
        what = f"the candidate {candidate!r} is no scheme, analyzer or share of the range"
        raise ConfigError(
            "FXQ293", what, fix="pass a scheme's name, an analyzer, or 0 < share <= 1"
        )
    return RangeRule(f"{candidate:g} of min_max", MinMax(), float(candidate))


class Observed:
    """Statistics of the values on one grid, and the ranges that rules choose from them.

    Args:
        quantizer: the grid's.
        rules: how ranges are chosen; those whose analyzers keep the same statistics share them.
    """

    def __init__(self, quantizer: AffineQuantizer, rules: Sequence[RangeRule]) -> None:
        self.quantizer, self.rules = quantizer, rules
        self._statistics: dict[tuple[object, ...], Statistics] = {}
        self._keys: list[tuple[object, ...]] = []
        for rule in rules:
            found = rule.analyzer.start(quantizer._layout)
            traits = (getattr(found, name, None) for name in ("bins", "share", "relative"))
            key = (type(found), *traits)
            self._statistics.setdefault(key, found)
            self._keys.append(key)

    def update(self, x: Tensor) -> None:
        """Take in values.

        Raises:
            CalibrationError: FXQ402, they hold NaN or infinity.
        """
        if not x.numel():
            return
        low, high = self.quantizer._layout.extremes(x)
        self.quantizer._check_finite(low, high)
        for statistics in self._statistics.values():
            statistics.update(x, low, high)

    def ranges(self) -> list[tuple[str, tuple[Tensor, Tensor]]]:
        """Names and ends of the ranges."""
        found = []
        for rule, key in zip(self.rules, self._keys, strict=True):
            ends = rule.analyzer.range(self._statistics[key], self.quantizer.grid)
            if ends is not None:
                low, high = (end * rule.share for end in ends)
                found.append((rule.name, (low.clamp(max=0.0), high.clamp(min=0.0))))
        return found
