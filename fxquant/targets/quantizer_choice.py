"""The quantizer that a target's arithmetic asks for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from fxquant.quantization import QuantScheme, affine
from fxquant.quantization.affine.pof2 import PowerOfTwo, PowerOfTwoQuantizeDequantize
from fxquant.quantization.affine.pof2_rounding import OF_ONNX, RoundingQuantizeDequantize
from fxquant.quantization.analyzers import Sqnr

if TYPE_CHECKING:
    from fxquant.quantization.analyzers import EncodingAnalyzer
    from fxquant.targets.schema import RoundMode, Target

Role = Literal["activation", "entry", "weight", "bias"]

# whose ranges have no counterpart among positions: the coarsest position that covers them is taken
_AS_THEY_ARE = (
    QuantScheme.post_training_percentile,
    QuantScheme.entropy,
    QuantScheme.moving_average,
)
# a channel of a weight has too few values for a distribution, and all of them at once
_OF_ACTIVATIONS = (QuantScheme.entropy, QuantScheme.moving_average)
_BY_RATIO = (
    QuantScheme.post_training_tf_enhanced,
    QuantScheme.training_range_learning_with_tf_enhanced_init,
)
_ENHANCED = (*_BY_RATIO, QuantScheme.mse)


def quantizer_for(
    target: Target,
    role: Role,
    scheme: QuantScheme,
    *,
    bitwidth: int,
    by_token: bool = False,
    **grid: Any,
) -> affine.QuantizeDequantize:
    """A quantizer without a range.

    Args:
        target: whose arithmetic it follows.
        role: what is quantized; "entry" is an activation that enters the quantized part.
        scheme: how its range is chosen; with powers of two "tf_enhanced" and "mse" are the
            search of positions, "min_max" the position that clips nothing.
        bitwidth: bits.
        by_token: what an error is of its token counts, where the scheme searches for the best
            signal-to-noise ratio.
        grid: further arguments of `QuantizeDequantize`: `shape`, `signed`, `symmetric`.
    """
    grid["bitwidth"] = bitwidth
    analyzer = _analyzer(target, role, scheme, bitwidth)
    if by_token and scheme in _BY_RATIO and isinstance(analyzer, Sqnr):
        analyzer = dataclasses.replace(analyzer, relative=True)
    grid["encoding_analyzer"] = analyzer
    rounding = _rounding(target, role)
    made: affine.QuantizeDequantize
    if target.powers_of_two:
        made = PowerOfTwoQuantizeDequantize(rounding=rounding, **grid)
    elif rounding != OF_ONNX:
        made = RoundingQuantizeDequantize(rounding=rounding, **grid)
    else:
        made = affine.QuantizeDequantize(**grid)
    set_training(made, role, scheme)
    return made


def set_training(quantizer: affine.QuantizeDequantize, role: Role, scheme: QuantScheme) -> None:
    """Say what training does with a range, as the scheme is documented.

    With the schemes for range learning an optimizer moves all ranges, with the gradient scale of
    LSQ. With all others those of activations stay as they were calibrated, and those of parameters
    follow the parameters.
    """
    parameter, learns = role in ("weight", "bias"), scheme.learns_ranges
    quantizer.requires_grad_(learns)
    quantizer.follows = parameter and not learns
    if learns:
        quantizer.gradient_scale = "parameter" if parameter else "activation"


def _rounding(target: Target, role: Role) -> RoundMode:
    if role == "weight":
        return target.weight.rounding
    return target.bias.rounding if role == "bias" else target.activation.rounding


def _analyzer(target: Target, role: Role, scheme: QuantScheme, bitwidth: int) -> EncodingAnalyzer:
    if role in ("weight", "bias") and scheme in _OF_ACTIVATIONS:
        scheme = QuantScheme.min_max
    if not target.powers_of_two or scheme in _AS_THEY_ARE:
        return scheme.analyzer()
    search = target.search
    scope = 1
    if scheme in _ENHANCED:
        scope = search.entry_scope if role == "entry" else search.scope
    return PowerOfTwo(scope, _cap(target, bitwidth))


def _cap(target: Target, bitwidth: int) -> int:
    return target.search.narrow_cap if bitwidth <= 8 else target.search.wide_cap


def analyzer_for_bits(
    target: Target, analyzer: EncodingAnalyzer, bitwidth: int
) -> EncodingAnalyzer:
    """The analyzer of a quantizer that takes another number of bits."""
    if isinstance(analyzer, PowerOfTwo) and analyzer.cap is not None:
        return dataclasses.replace(analyzer, cap=_cap(target, bitwidth))
    return analyzer
