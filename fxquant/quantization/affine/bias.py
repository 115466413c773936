"""The int32 grid of a bias: its step is the product of the steps of input and weight.

An integer kernel adds the bias to the accumulator of `sum(x_int * w_int)`, whose unit is
`s_in * s_w`; a bias on any other grid would have to be rounded again at run time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxquant.errors import ShapeMismatchError
from fxquant.quantization import kernels, traced
from fxquant.quantization.affine.affine_quantizer import AffineQuantizer
from fxquant.quantization.encodings import AffineEncoding
from fxquant.quantization.quantizer_base import QuantizerBase, float32
from fxquant.quantization.range_to_qparams import Factors
from fxquant.quantization.tensor import DequantizedTensor, attach

_INT32 = (-(2**31), 2**31 - 1)
# the bias may use half of the int32 accumulator; the other half is left to the products
_HEADROOM = float(2**30)


class BiasQuantizeDequantize(QuantizerBase):
    """Rounds a bias to multiples of `s_in * s_w`; it has no range of its own.

    Args:
        input_quantizer: quantizer of the tensor that the weight is multiplied with.
        weight_quantizer: quantizer of the weight.

    The two are referred to, not owned: they belong to the modules that hold them.
    """

    def __init__(self, input_quantizer: QuantizerBase, weight_quantizer: QuantizerBase) -> None:
        super().__init__()
        self._sources = (input_quantizer, weight_quantizer)  # a tuple: not registered as children
        self._known: tuple[Any, Any, AffineEncoding] | None = None

    bitwidth = 32
    signed = True
    symmetric = True
    block_size = None
    qmin, qmax = _INT32

    @property
    def input_quantizer(self) -> QuantizerBase:
        """Quantizer of the tensor that the weight is multiplied with."""
        return self._sources[0]

    @property
    def weight_quantizer(self) -> QuantizerBase:
        """Quantizer of the weight."""
        return self._sources[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """`(channels,)`, or `(1,)` if the weight has one step."""
        scale = self.get_scale()
        return (1,) if scale is None else tuple(scale.shape)

    def is_initialized(self) -> bool:
        """True if the quantizers of input and weight are."""
        return all(q.is_initialized() for q in self._sources)

    def get_scale(self) -> Tensor | None:
        """`s_in * s_w`, float32 `[C]`, or None before both are known."""
        encoding = self.get_encodings()
        return None if encoding is None else encoding.scale

    def get_offset(self) -> Tensor | None:
        """Zeros `[C]`, or None before the scale is known."""
        encoding = self.get_encodings()
        return None if encoding is None else encoding.offset

    def get_encodings(self) -> AffineEncoding | None:
        """What the integers mean, or None before both quantizers are calibrated."""
        first, second = (q.get_encodings() for q in self._sources)
        if not isinstance(first, AffineEncoding) or not isinstance(second, AffineEncoding):
            return None
        known = self._known
        if known is None or known[0] is not first or known[1] is not second:
            known = self._known = (first, second, _product(first, second, self.where))
        return known[2]

    def forward(self, x: Tensor) -> Tensor:
        """The bias on its grid, `[C] -> [C]`; unchanged while observing."""
        if self._observing or not self._enabled:
            return x
        if torch.compiler.is_compiling():
            return self._traced(x)
        return attach(self.transform(x), self.encoding_for(x), DequantizedTensor)

    def _traced(self, x: Tensor) -> Tensor:
        """As `transform`, with the step computed from the ranges where a compiler can follow."""
        first, second = self._sources
        if not isinstance(first, AffineQuantizer) or not isinstance(second, AffineQuantizer):
            return self.transform(x)
        weight = second.traced_scale()
        if second.block_size is not None and weight.dim() > 1:
            weight = weight.flatten(1).amax(1)
        # computed apart from the ranges: the gradient of a bias goes to the bias alone
        scale = (first.traced_scale().reshape(()) * weight.reshape(-1)).detach()
        if 1 < scale.numel() < x.numel():
            scale = scale.repeat(x.numel() // scale.numel())
        y = traced.quantize_dequantize(float32(x), scale, torch.zeros_like(scale), *_INT32)
        return y.to(x.dtype)

    def transform(self, x: Tensor) -> Tensor:
        """The bias on its grid as a plain tensor."""
        encoding = self.encoding_for(x)
        scale, zero, given = encoding.scale, encoding.zero_point, x.dtype
        x = float32(x)
        if torch.compiler.is_compiling():
            return traced.quantize_dequantize(x, scale, zero, *_INT32).to(given)
        p = kernels.affine(scale, zero, *_INT32, centred=True)
        if torch.is_grad_enabled() and x.requires_grad:
            return kernels.apply(x, scale, zero, p, _no_factors).to(given)
        return kernels.quantize_dequantize(x, p).to(given)

    def needed_step(self, bias: Tensor) -> Tensor | None:
        """The smallest step of the weight with which the bias fits into int32.

        A channel whose weights are all but zero has a tiny step, and the step of the bias is tiny
        with it: the integer saturates and the channel loses its bias. A wider step for such weights
        costs nothing that can be seen.

        Args:
            bias: the float bias, `[C]`.

        Returns:
            Steps of the weight, `[C]` or `[1]`, or None if the bias fits as it is.
        """
        source, own = self.input_quantizer.get_scale(), self.get_scale()
        if source is None or own is None:
            return None
        largest = bias.detach().abs().float()
        if own.numel() > 1:
            largest = largest.reshape(-1, own.numel())
        largest = largest.amax(0) if own.numel() > 1 else largest.amax().reshape(1)
        if not bool((largest / own > _HEADROOM).any()):
            return None
        return largest / _HEADROOM / source.detach().reshape(())

    def encoding_for(self, x: Tensor) -> AffineEncoding:
        """The encoding in the shape of a bias, `[C]`; a channel may stand for several groups."""
        encoding = self.get_encodings()
        if encoding is None:
            missing = [q.where or type(q).__name__ for q in self._sources if not q.is_initialized()]
            more = f"; it waits for {', '.join(missing)}"
            raise self._uncalibrated(more)
        return _repeated(encoding, x)

    def _forget(self) -> None:
        self._known = None

    def extra_repr(self) -> str:
        """The grid."""
        return "bitwidth=32, scale=input*weight"


def _repeated(encoding: AffineEncoding, bias: Tensor) -> AffineEncoding:
    """The encoding of a bias that has a channel for every group of a transposed convolution."""
    channels, given = encoding.scale.numel(), bias.numel()
    if given == channels or channels == 1:
        return encoding
    if given % channels:
        raise ShapeMismatchError(
            "FXQ412",
            f"a bias of {given} channels does not fit a weight quantized in {channels} channels",
            fix="quantize the weight along its output channels",
        )
    return AffineEncoding(
        encoding.scale.repeat(given // channels),
        encoding.offset.repeat(given // channels),
        *_INT32,
        True,
    )


@torch.inference_mode(False)
@torch.no_grad()
def _product(first: AffineEncoding, second: AffineEncoding, where: str | None) -> AffineEncoding:
    if first.granularity != "pertensor":
        raise ShapeMismatchError(
            "FXQ413",
            f"an int32 bias needs one scale for the layer's input, not {first.granularity}",
            at=where,
            fix="quantize the input per tensor, or leave the bias in float",
        )
    weight = second.scale
    if second.block_size is not None and weight.dim() > 1:
        weight = weight.flatten(1).amax(1)
    scale = first.scale.reshape(()) * weight.reshape(-1)
    return AffineEncoding(scale, torch.zeros_like(scale), *_INT32, True)


def _no_factors() -> Factors:
    return Factors((torch.zeros(()), torch.zeros(())), (None, None))  # never asked for
