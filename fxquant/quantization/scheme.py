"""Named ways to choose ranges."""

from __future__ import annotations

from enum import Enum

from fxquant.errors import QuantizationError, nearest
from fxquant.quantization.analyzers import EncodingAnalyzer, MinMax, Percentile, Sqnr

_SPELLINGS = {
    "tf": "min_max",
    "minmax": "min_max",
    "post_training_tf": "min_max",
    "tf_enhanced": "tf_enhanced",
    "sqnr": "tf_enhanced",
    "post_training_tf_enhanced": "tf_enhanced",
    "post_training_percentile": "percentile",
    "training_range_learning_with_tf_init": "range_learning_tf",
    "training_range_learning_with_tf_enhanced_init": "range_learning_tf_enhanced",
}


class QuantScheme(Enum):
    """How ranges are chosen in calibration; the last two are kept for users of range learning.

    Ranges can be learned whatever the scheme is, so those two only name the initial ranges.

    Example:
        >>> QuantScheme("tf_enhanced")
        <QuantScheme.post_training_tf_enhanced: 'tf_enhanced'>
    """

    min_max = "min_max"
    post_training_tf = "min_max"  # an alias
    post_training_tf_enhanced = "tf_enhanced"
    post_training_percentile = "percentile"
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

    def analyzer(self, *, percentile: float = 99.99) -> EncodingAnalyzer:
        """The analyzer that chooses ranges this way.

        Args:
            percentile: share of the values that is kept, for `post_training_percentile`.
        """
        if self is QuantScheme.post_training_percentile:
            return Percentile(percentile)
        enhanced = QuantScheme.training_range_learning_with_tf_enhanced_init
        if self in (QuantScheme.post_training_tf_enhanced, enhanced):
            return Sqnr()
        return MinMax()


def analyzer_for(scheme: QuantScheme | str, *, percentile: float = 99.99) -> EncodingAnalyzer:
    """The analyzer of a scheme or of its name."""
    return QuantScheme(scheme).analyzer(percentile=percentile)
