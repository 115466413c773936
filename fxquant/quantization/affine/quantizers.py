"""`QuantizeDequantize`, `Quantize`, `Dequantize`: what an affine quantizer does with a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fxquant.quantization import kernels, traced
from fxquant.quantization.affine.affine_quantizer import AffineQuantizer
from fxquant.quantization.tensor import QuantizedTensor, adopt, plain

if TYPE_CHECKING:
    from fxquant.quantization.affine.known import Known
    from fxquant.quantization.encodings import AffineEncoding


class QuantizeDequantize(AffineQuantizer):
    """Rounds a tensor to the nearest values of its grid.

    Example:
        >>> import torch
        >>> q = QuantizeDequantize(shape=(), bitwidth=4)
        >>> q.set_range(0.0, 1.5)
        >>> q(torch.tensor([0.26, 9.0])).quantize()
        QuantizedTensor([ 3., 15.], grad_fn=<AliasBackward0>)
    """


class Quantize(AffineQuantizer):
    """Turns a tensor into the integers of its grid, stored as floats."""

    def _step(self, x: Tensor, known: Known, params: kernels.Affine) -> Tensor:
        if self._differentiable(x, known):
            return kernels.apply_quantize(
                x, known.low, known.high, params, self._learning(x, known)
            )
        return kernels.quantize(x, params)

    def _traced_step(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return traced.quantize(x, scale, zero, self.qmin, self.qmax)

    def _attach(self, y: Tensor, encoding: AffineEncoding | None) -> Tensor:
        return adopt(y, encoding, QuantizedTensor)


class Dequantize(AffineQuantizer):
    """Turns integers of its grid, stored as floats or as integers, into real values.

    Without a range it takes the encoding that a `QuantizedTensor` carries.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The real values."""
        if isinstance(x, QuantizedTensor) and x.encoding is not None and not self.is_initialized():
            return x.dequantize()
        return super().forward(x)

    def _run(self, x: Tensor, known: Known) -> Tensor:
        if known.encoding is None:
            raise self._uncalibrated()
        return known.encoding.dequantize(plain(x))

    def _traced_step(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return (x - zero) * scale
