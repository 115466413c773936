"""Where ties go: quantizers of chips that do not round half to even.

Rounding differs at ties only, and ties are rare with arbitrary steps. Where steps are powers of two
they are not: a product of two 8-bit numbers that is shifted by 7 lies on a tie once in 128 times.
ONNX's QuantizeLinear always rounds half to even, so a file can carry the other modes for weights
and biases (their integers are stored) but not for activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from fxquant.errors import QuantizationError, nearest
from fxquant.quantization import kernels, traced
from fxquant.quantization.affine.quantizers import QuantizeDequantize
from fxquant.quantization.encodings import AffineEncoding
from fxquant.quantization.layout import Layout

if TYPE_CHECKING:
    from fxquant.quantization.affine.known import Known

RoundMode = Literal["half_even", "half_up", "half_down", "std_round"]
"""Ties to even, towards +infinity, towards zero, away from zero."""

ROUND_MODES: tuple[RoundMode, ...] = get_args(RoundMode)
# what QuantizeLinear does
OF_ONNX: RoundMode = "half_even"


def half_up(x: Tensor) -> Tensor:
    """The nearest integers, ties towards +infinity."""
    below = torch.floor(x)
    return torch.where(x - below == 0.5, below + 1.0, torch.round(x))


def half_down(x: Tensor) -> Tensor:
    """The nearest integers, ties towards zero."""
    whole = torch.trunc(x)
    return torch.where((x - whole).abs() == 0.5, whole, torch.round(x))


def std_round(x: Tensor) -> Tensor:
    """The nearest integers, ties away from zero."""
    whole = torch.trunc(x)
    return torch.where((x - whole).abs() == 0.5, whole + torch.sign(x), torch.round(x))


_ROUND: dict[RoundMode, Callable[[Tensor], Tensor]] = {
    "half_even": torch.round,
    "half_up": half_up,
    "half_down": half_down,
    "std_round": std_round,
}


def round_by(mode: RoundMode) -> Callable[[Tensor], Tensor]:
    """The function of a rounding mode.

    Raises:
        QuantizationError: FXQ417, there is no such mode.

    Example:
        >>> round_by("half_up")(torch.tensor([-2.5, -0.5, 0.5, 2.5]))
        tensor([-2.,  0.,  1.,  3.])
    """
    if mode not in _ROUND:
        fix = nearest(str(mode), ROUND_MODES) or f"use one of {', '.join(ROUND_MODES)}"
        raise QuantizationError("FXQ417", f"unknown rounding mode {mode!r}", fix=fix)
    return _ROUND[mode]


@dataclass(frozen=True, eq=False)
class RoundedEncoding(AffineEncoding):
    """An affine encoding whose integers were made by another rounding than ties to even.

    Args:
        rounding: where ties go.
    """

    rounding: RoundMode = OF_ONNX

    def quantize(self, x: Tensor) -> Tensor:
        """Integers of the grid, stored as floats: `[...] -> [...]`."""
        layout = Layout(self.shape, self.block_size)
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        y = _integers(layout.split(x), self._affine(layout), self.rounding)
        return y.reshape(x.shape)


class RoundingQuantizeDequantize(QuantizeDequantize):
    """`QuantizeDequantize` with a rounding mode.

    Args:
        rounding: where ties go.
        options: as for `QuantizeDequantize`.
    """

    def __init__(self, *args: Any, rounding: RoundMode = OF_ONNX, **options: Any) -> None:
        super().__init__(*args, **options)
        round_by(rounding)
        self._rounding: RoundMode = rounding

    @property
    def rounding(self) -> RoundMode:
        """Where ties go; setting it keeps the range."""
        return self._rounding

    @rounding.setter
    def rounding(self, mode: RoundMode) -> None:
        round_by(mode)
        self._rounding = mode
        self._forget()

    def _encoding(self, scale: Tensor, offset: Tensor) -> AffineEncoding:
        plain = super()._encoding(scale, offset)
        if self._rounding == OF_ONNX:
            return plain
        return RoundedEncoding(
            plain.scale, plain.offset, plain.qmin, plain.qmax, plain.symmetry, plain.block_size,
            self._rounding,
        )  # fmt: skip

    def _step(self, x: Tensor, known: Known, params: kernels.Affine) -> Tensor:
        if self._rounding == OF_ONNX:
            return super()._step(x, known, params)
        if self._differentiable(x, known):
            run: Any = _Rounded.apply
            return run(x, known.low, known.high, params, self._learning(x, known), self._rounding)  # type: ignore[no-any-return]
        return kernels.dequantize(_integers(x, params, self._rounding), params)

    def _traced_step(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        if self._rounding == OF_ONNX:
            return super()._traced_step(x, scale, zero)
        steps = x / scale
        steps = steps + (round_by(self._rounding)(steps) - steps).detach()
        return (traced.clipped(steps + zero, self.qmin, self.qmax) - zero) * scale

    def extra_repr(self) -> str:
        """Shape, grid and rounding."""
        return f"{super().extra_repr()}, rounding={self._rounding}"


class _Rounded(torch.autograd.Function):
    """Quantization with a rounding mode; the gradient does not depend on where ties go."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, low: Tensor, high: Tensor, p: Any, lazy: Any, mode: Any
    ) -> Any:
        def compute(x: Tensor) -> Tensor:
            return kernels.dequantize(_integers(x, p, mode), p)

        again = kernels.Again(compute, lambda x: _Rounded.apply(x, low, high, p, lazy, mode))  # type: ignore[no-untyped-call]
        kernels.keep_for_backward(ctx, x, p, lazy, again, kernels.Found())
        return compute(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return *kernels.gradients(ctx, g), None, None, None


def _integers(x: Tensor, p: kernels.Affine, mode: RoundMode) -> Tensor:
    rounded = round_by(mode)(torch.div(x, p.scale))
    return rounded.add_(p.zero_point).clamp_(p.qmin, p.qmax)
