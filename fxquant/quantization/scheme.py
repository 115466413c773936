"""Named ways to choose ranges."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from fxquant.errors import QuantizationError, nearest
from fxquant.quantization.analyzers import (
    EncodingAnalyzer,
    Entropy,
    MinMax,
    MovingAverage,
    Mse,
    Percentile,
    Sqnr,
)

_SPELLINGS = {
    "tf": "min_max",
    "minmax": "min_max",
    "post_training_tf": "min_max",
    "tf_enhanced": "tf_enhanced",
    "sqnr": "tf_enhanced",
    "post_training_tf_enhanced": "tf_enhanced",
    "post_training_percentile": "percentile",
    "post_training_mse": "mse",
    "kl": "entropy",
    "post_training_entropy": "entropy",
    "ema": "moving_average",
    "post_training_moving_average": "moving_average",
    "training_range_learning_with_tf_init": "range_learning_tf",
    "training_range_learning_with_tf_enhanced_init": "range_learning_tf_enhanced",
}


class QuantScheme(Enum):
    """How ranges are chosen in calibration; the last two are kept for users of range learning.

    Ranges can be learned whatever the scheme is, so those two only name the initial ranges.

    Attributes:
        min_max: the whole range; "tf" and `post_training_tf` are other names of it.
        post_training_tf_enhanced: best signal-to-noise ratio, clipping counts three times; "sqnr".
            For tokens that linear layers alone read in integers: best mean ratio of a token.
        post_training_percentile: leaves out a share of the values, see `set_percentile_value`.
        mse: smallest squared error, clipping counts like rounding.
        entropy: smallest Kullback-Leibler divergence; "kl". Of activations: weights of a
            simulation, which have too few values for that, keep their whole range.
        moving_average: average of the batches' extremes, the last batches most; "ema". The one
            scheme whose ranges depend on the order of the batches; weights keep their whole range.

    Example:
        >>> QuantScheme("tf_enhanced")
        <QuantScheme.post_training_tf_enhanced: 'tf_enhanced'>
    """

    min_max = "min_max"
    post_training_tf = "min_max"  # an alias
    post_training_tf_enhanced = "tf_enhanced"
    post_training_percentile = "percentile"
    mse = "mse"
    entropy = "entropy"
    moving_average = "moving_average"
    training_range_learning_with_tf_init = "range_learning_tf"
    training_range_learning_with_tf_enhanced_init = "range_learning_tf_enhanced"

    @classmethod
    def _missing_(cls, value: object) -> QuantScheme:
        spelled = _SPELLINGS.get(value.lower()) if isinstance(value, str) else None
        if spelled is not None:
            return cls(spelled)
        known = [*_SPELLINGS, *(m.value for m in cls)]
        raise QuantizationError(
            "FXQ416",
            f"unknown quantization scheme {value!r}",
            fix=nearest(str(value), known) or f"use one of {', '.join(m.value for m in cls)}",
        )

    @classmethod
    def from_str(cls, alias: str) -> QuantScheme:
        """The scheme of a name; the same as `QuantScheme(alias)`."""
        return cls(alias)

    @property
    def learns_ranges(self) -> bool:
        """True if training moves the ranges as well as the weights."""
        return self.value.startswith("range_learning")

    def analyzer(self, *, percentile: float = 99.99) -> EncodingAnalyzer:
        """The analyzer that chooses ranges this way.

        Args:
            percentile: share of the values that is kept, for `post_training_percentile`.
        """
        if self is QuantScheme.post_training_percentile:
            return Percentile(percentile)
        return _ANALYZERS[self]()


_ANALYZERS: dict[QuantScheme, Callable[[], EncodingAnalyzer]] = {
    QuantScheme.min_max: MinMax,
    QuantScheme.post_training_tf_enhanced: Sqnr,
    QuantScheme.mse: Mse,
    QuantScheme.entropy: Entropy,
    QuantScheme.moving_average: MovingAverage,
    QuantScheme.training_range_learning_with_tf_init: MinMax,
    QuantScheme.training_range_learning_with_tf_enhanced_init: Sqnr,
}


def analyzer_for(scheme: QuantScheme | str, *, percentile: float = 99.99) -> EncodingAnalyzer:
    """The analyzer of a scheme or of its name."""
    return QuantScheme(scheme).analyzer(percentile=percentile)
