"""Tensors that remember how they were quantized.

`DequantizedTensor` holds real values that lie on a grid, `QuantizedTensor` the integers themselves
(stored as floats). Operators that only move values keep the encoding, all others return a plain
tensor: what they compute lies on no grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fxquant.errors import QuantizationError
from fxquant.quantization.encodings import AffineEncoding, Encoding

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
# elements move, are dropped or repeated: an encoding survives if it is the same for all elements
_MOVE_NAMES = (
    "amax amin chunk diagonal expand expand_as flatten flip gather index_select masked_select max min "
    "movedim moveaxis narrow permute repeat repeat_interleave reshape reshape_as roll rot90 select "
    "split squeeze swapaxes swapdims t take take_along_dim tensor_split tile transpose "
    "unbind unflatten unfold unsqueeze view view_as topk sort __getitem__ hsplit vsplit dsplit"
)
_MOVE: set[Callable[..., Any]] = {
    getattr(home, name) for name in _MOVE_NAMES.split() for home in (Tensor, torch) if hasattr(home, name)
} | {
    F.pixel_shuffle,
    F.pixel_unshuffle,
    torch.channel_shuffle,
    torch.max_pool1d,
    torch.max_pool2d,
    torch.max_pool3d,
    F.max_pool1d_with_indices,
    F.max_pool2d_with_indices,
    F.max_pool3d_with_indices,
    torch.adaptive_max_pool1d,
    F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
    Tensor.T.__get__,
    Tensor.mT.__get__,
}
_plain = torch._C.DisableTorchFunctionSubclass


class _EncodedTensor(torch.Tensor):
    encoding: Encoding | None = None

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        with _plain():
            out = func(*args, **(kwargs or {}))
        if func in _KEEP:
            return _carried(out, args[0], moved=False)
        if func in _MOVE:
            return _carried(out, args[0], moved=True)
        if isinstance(out, _EncodedTensor) and any(out is a for a in args):
            # written in place: the new values lie on no grid
            out.encoding = None
        return out

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (type(self), self.as_subclass(Tensor), self.encoding)

    def __deepcopy__(self, memo: dict[int, Any]) -> _EncodedTensor:
        copied: Tensor = self.as_subclass(Tensor).detach().clone()
        out = attach(copied.requires_grad_(self.requires_grad), self.encoding, type(self))
        memo[id(self)] = out
        return out

    def _affine(self) -> AffineEncoding:
        if not isinstance(self.encoding, AffineEncoding):
            raise QuantizationError(
                "FXQ407",
                "this tensor carries no integer encoding",
                fix="call quantize() on the output of a quantizer, before anything is computed from it",
            )
        return self.encoding


class DequantizedTensor(_EncodedTensor):
    """Real values that lie on the grid of `encoding`."""

    def quantize(self) -> QuantizedTensor:
        """The integers of these values; exact, since they lie on the grid."""
        encoding = self._affine()
        return attach(encoding.quantize(self.as_subclass(Tensor)), encoding, QuantizedTensor)

    def dequantize(self) -> DequantizedTensor:  # type: ignore[override]
        """The tensor itself."""
        return self

    def quantized_repr(self) -> Tensor:
        """The integers in the smallest integer type that holds them."""
        return self.quantize().quantized_repr()


class QuantizedTensor(_EncodedTensor):
    """Integers of the grid of `encoding`, stored as floats."""

    def quantize(self) -> QuantizedTensor:
        """The tensor itself."""
        return self

    def dequantize(self) -> DequantizedTensor:  # type: ignore[override]
        """The real values that the integers stand for."""
        encoding = self._affine()
        return attach(encoding.dequantize(self.as_subclass(Tensor)), encoding, DequantizedTensor)

    def quantized_repr(self) -> Tensor:
        """The integers in the smallest integer type that holds them."""
        return self.as_subclass(Tensor).detach().to(self._affine().dtype)


_T = TypeVar("_T", bound=_EncodedTensor)


def attach(x: Tensor, encoding: Encoding | None, kind: type[_T]) -> _T:
    """The tensor as a `kind` that carries `encoding`; shares its memory."""
    out = x.as_subclass(kind)
    out.encoding = encoding
    return out


def plain(x: Tensor) -> Tensor:
    """The tensor without its encoding; shares its memory."""
    return x.as_subclass(Tensor) if isinstance(x, _EncodedTensor) else x


def _carried(out: Any, source: Any, *, moved: bool) -> Any:
    if isinstance(out, tuple | list):
        items = [_carried(item, source, moved=moved) for item in out]
        return type(out)(items) if type(out) in (tuple, list) else _named(out, items)
    if not isinstance(source, _EncodedTensor) or not isinstance(out, Tensor):
        return out
    encoding = source.encoding
    if encoding is None or not out.is_floating_point():
        return out
    if moved and encoding.granularity != "pertensor":
        return out
    if isinstance(encoding, AffineEncoding) and encoding.scale.device != out.device:
        encoding = encoding.to(out.device)
    return attach(out, encoding, type(source))


def _named(out: Any, items: list[Any]) -> Any:
    # structseq of PyTorch takes one iterable, a namedtuple its fields
    return type(out)._make(items) if hasattr(out, "_make") else type(out)(items)


def _rebuild(kind: type[_EncodedTensor], x: Tensor, encoding: Encoding | None) -> _EncodedTensor:
    return attach(x, encoding, kind)
