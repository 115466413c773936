"""Tensors that remember how they were quantized.

`DequantizedTensor` holds real values that lie on a grid, `QuantizedTensor` the integers themselves
(stored as floats). Operators that only move values keep the encoding, also one with a scale for
every channel as long as the axis can be followed; all others return a plain tensor: what they
compute lies on no grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.errors import QuantizationError
from fxquant.quantization import recomputing
from fxquant.quantization.encodings import AffineEncoding, Encoding
from fxquant.quantization.gradients import poles
from fxquant.quantization.view_tracking import follow

# same elements at the same places: any encoding survives
_KEEP: set[Callable[..., Any]] = {
    torch.clone,
    torch.detach,
    Tensor.clone,
    Tensor.detach,
    Tensor.contiguous,
    Tensor.cpu,
    Tensor.cuda,
    Tensor.to,
    Tensor.requires_grad_,
    Tensor.share_memory_,
    Tensor.pin_memory,
    Tensor.float,
    Tensor.double,
    Tensor.half,
    Tensor.bfloat16,
    torch.alias_copy,
}
# elements move, are dropped or repeated: an encoding survives if it is the same for all elements,
# or if it can be followed where each of them went (see `follow.py`)
_MOVE_NAMES = (
    "__getitem__ adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax amin "
    "channel_shuffle chunk diagonal dsplit expand expand_as flatten flip gather hsplit "
    "index_select masked_select max max_pool1d max_pool1d_with_indices max_pool2d "
    "max_pool2d_with_indices max_pool3d max_pool3d_with_indices min moveaxis movedim narrow "
    "native_channel_shuffle permute pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape "
    "reshape_as roll rot90 select sort split squeeze swapaxes swapdims t take take_along_dim "
    "tensor_split tile topk transpose unbind unflatten unfold unsqueeze view view_as vsplit"
)
_MOVE: set[Callable[..., Any]] = {
    getattr(home, name)
    for name in _MOVE_NAMES.split()
    for home in (Tensor, torch, F)
    if hasattr(home, name)
} | {
    Tensor.T.__get__,  # type: ignore[attr-defined]
    Tensor.mT.__get__,  # type: ignore[attr-defined]
}
_plain = torch._C.DisableTorchFunctionSubclass


class EncodedTensor(torch.Tensor):
    """A tensor that carries an encoding, or None."""

    _encoding: Encoding | None = None
    _written: int | None = None

    @property
    def encoding(self) -> Encoding | None:
        """What the numbers mean; None once they have been written to in place."""
        if self._encoding is not None and _version(self) != self._written:
            self._encoding = None
        return self._encoding

    @encoding.setter
    def encoding(self, encoding: Encoding | None) -> None:
        self._encoding = encoding
        self._written = _version(self)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        with _plain():
            out = poles.run(func, args, kwargs or {}, recomputing.run)
        if func in _KEEP:
            return _carried(out, args[0], moved=False)
        if func in _MOVE:
            source = args[0] if args else None
            encoding = source.encoding if isinstance(source, EncodedTensor) else None
            if isinstance(source, EncodedTensor) and _has_many(encoding):
                shape = tuple(source.shape)
                followed = follow(func, encoding, shape, args[1:], kwargs or {})
                return _with_encodings(out, followed, type(source))
            return _carried(out, source, moved=True)
        return out

    def backward(self, *args: Any, **kwargs: Any) -> None:
        """As of every tensor, without a look at the subclass for each of its attributes."""
        with _plain():
            super().backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (type(self), self.as_subclass(Tensor), self.encoding)

    def __deepcopy__(self, memo: dict[int, Any]) -> EncodedTensor:
        copied: Tensor = self.as_subclass(Tensor).detach().clone()
        out = attach(copied.requires_grad_(self.requires_grad), self.encoding, type(self))
        memo[id(self)] = out
        return out

    def _affine(self) -> AffineEncoding:
        if not isinstance(self.encoding, AffineEncoding):
            raise QuantizationError(
                "FXQ407",
                "this tensor carries no integer encoding",
                fix="call quantize() on a quantizer's output, before anything is computed from it",
            )
        return self.encoding


class DequantizedTensor(EncodedTensor):
    """Real values that lie on the grid of `encoding`."""

    def quantize(self) -> QuantizedTensor:
        """The integers of these values; exact, since they lie on the grid."""
        encoding = self._affine()
        return attach(encoding.quantize(self.as_subclass(Tensor)), encoding, QuantizedTensor)

    def dequantize(self) -> DequantizedTensor:
        """The tensor itself."""
        return self

    def quantized_repr(self) -> Tensor:
        """The integers in the smallest integer type that holds them."""
        return self.quantize().quantized_repr()


class QuantizedTensor(EncodedTensor):
    """Integers of the grid of `encoding`, stored as floats."""

    def quantize(self) -> QuantizedTensor:
        """The tensor itself."""
        return self

    def dequantize(self) -> DequantizedTensor:
        """The real values that the integers stand for."""
        encoding = self._affine()
        return attach(encoding.dequantize(self.as_subclass(Tensor)), encoding, DequantizedTensor)

    def quantized_repr(self) -> Tensor:
        """The integers in the smallest integer type that holds them."""
        return self.as_subclass(Tensor).detach().to(self._affine().dtype)


_T = TypeVar("_T", bound=EncodedTensor)


def attach(x: Tensor, encoding: Encoding | None, kind: type[_T]) -> _T:
    """The tensor as a `kind` that carries `encoding`; shares its memory."""
    out = x.as_subclass(kind)
    out._encoding = encoding
    out._written = _version(x)
    recomputing.hand_over(x, out)
    return out


def adopt(x: Tensor, encoding: Encoding | None, kind: type[_T]) -> _T:
    """As `attach`, for a tensor that nobody else holds: it changes its class.

    Spares the alias that another tensor over the same memory needs in the autograd graph.
    """
    if type(x) is not Tensor:
        return attach(x, encoding, kind)
    written = None if x.is_inference() else x._version
    x.__class__ = kind
    out: _T = x  # type: ignore[assignment]
    out._encoding = encoding
    out._written = written
    return out


def _has_many(encoding: Encoding | None) -> TypeGuard[Encoding]:
    """Whether there are several scales."""
    return encoding is not None and encoding.granularity != "pertensor"


def _version(x: Tensor) -> int | None:
    with _plain():
        return None if x.is_inference() else x._version


def plain(x: Tensor) -> Tensor:
    """The tensor without its encoding; shares its memory."""
    return x.as_subclass(Tensor) if isinstance(x, EncodedTensor) else x


def _carried(out: Any, source: Any, *, moved: bool) -> Any:
    if isinstance(out, tuple | list):
        items = [_carried(item, source, moved=moved) for item in out]
        return type(out)(items) if type(out) in (tuple, list) else _named(out, items)
    if not isinstance(source, EncodedTensor) or not isinstance(out, Tensor) or out is source:
        return out
    encoding = source.encoding
    if encoding is None or not out.is_floating_point():
        return out
    if moved and encoding.granularity != "pertensor":
        return out
    if isinstance(encoding, AffineEncoding) and encoding.scale.device != out.device:
        encoding = encoding.to(out.device)
    return attach(out, encoding, type(source))


def _with_encodings(out: Any, encodings: Any, kind: type[EncodedTensor]) -> Any:
    """The results with the encoding of each, where it has one."""
    if isinstance(out, tuple | list) and isinstance(encodings, list):
        items = [_with_encodings(o, e, kind) for o, e in zip(out, encodings, strict=True)]
        return type(out)(items) if type(out) in (tuple, list) else _named(out, items)
    if encodings is None or not isinstance(out, Tensor) or not out.is_floating_point():
        return out
    return attach(out, encodings, kind)


def _named(out: Any, items: list[Any]) -> Any:
    # structseq of PyTorch takes one iterable, a namedtuple its fields
    return type(out)._make(items) if hasattr(out, "_make") else type(out)(items)


def _rebuild(kind: type[EncodedTensor], x: Tensor, encoding: Encoding | None) -> EncodedTensor:
    return attach(x, encoding, kind)
