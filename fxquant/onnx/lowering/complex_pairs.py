"""Functions of complex numbers on pairs of real ones, where torch's exporter has no form for them.

The exporter stores complex tensors as pairs and knows sums, products, transforms and what moves
values; it has no form for making, padding, choosing and writing into them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_Form = Callable[..., Any]


class OnPairs(TorchFunctionMode):
    """Within it, functions that get complex tensors compute on pairs if they are in the table."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the form on pairs, or the function itself."""
        form = _FORMS.get(func)
        dtype = (kwargs or {}).get("dtype")
        made = isinstance(dtype, torch.dtype) and dtype.is_complex
        if form is not None and (made or any(map(_is_complex, args))):
            return form(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _is_complex(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_complex()


def _pairs(x: Tensor | complex, like: Tensor) -> Tensor:
    """Real and imaginary part on a new last axis, also of real tensors and numbers."""
    if not isinstance(x, Tensor):
        x = complex(x)
        return torch.view_as_real(like).new_tensor([x.real, x.imag])
    if x.is_complex():
        return torch.view_as_real(x.resolve_conj())
    return torch.stack([x, torch.zeros_like(x)], -1).to(torch.view_as_real(like).dtype)


def _zeros(*size: Any, dtype: torch.dtype, **options: Any) -> Tensor:
    return torch.view_as_complex(torch.zeros((*_flat(size), 2), dtype=dtype.to_real(), **options))


def _flat(size: tuple[Any, ...]) -> Sequence[Any]:
    return size[0] if len(size) == 1 and isinstance(size[0], Sequence) else size


def _zeros_like(x: Tensor, **options: Any) -> Tensor:
    if options.get("dtype") not in (None, x.dtype):
        return torch.zeros_like(x.real, **options)
    return torch.view_as_complex(torch.zeros_like(_pairs(x, x)))


def _ones_like(x: Tensor, **options: Any) -> Tensor:
    if options.get("dtype") not in (None, x.dtype):
        return torch.ones_like(x.real, **options)
    one = _pairs(1, x)
    return torch.view_as_complex(torch.zeros_like(_pairs(x, x)) + one)


def _new_zeros(x: Tensor, *size: Any, **options: Any) -> Tensor:
    sizes = _flat(size)
    if options.get("dtype") not in (None, x.dtype):
        return x.real.new_zeros(sizes, **options)
    return torch.view_as_complex(_pairs(x, x).new_zeros((*sizes, 2)))


def _pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Tensor:
    if mode != "constant" or value:  # the exporter says what it makes of it
        return F.pad(x, list(pad), mode, value)
    return torch.view_as_complex(F.pad(_pairs(x, x), (0, 0, *pad)))


def _where(condition: Tensor, x: Any, other: Any) -> Tensor:
    like = x if _is_complex(x) else other
    chosen = torch.where(condition[..., None], _pairs(x, like), _pairs(other, like))
    return torch.view_as_complex(chosen)


def _masked_fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    return _where(mask, value, x)


def _exp(x: Tensor) -> Tensor:
    real, imaginary = _pairs(x, x).unbind(-1)
    parts = [torch.cos(imaginary), torch.sin(imaginary)]
    return torch.view_as_complex(torch.exp(real)[..., None] * torch.stack(parts, -1))


def _einsum(equation: Any, *operands: Any) -> Tensor:
    given = operands[0] if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
    if not isinstance(equation, str) or len(given) != 2:
        return torch.einsum(equation, *given)
    like = next(x for x in given if x.is_complex())
    (a, b), (c, d) = (_pairs(x, like).unbind(-1) for x in given)

    def product(x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum(equation, x, y)

    parts = [product(a, c) - product(b, d), product(a, d) + product(b, c)]
    return torch.view_as_complex(torch.stack(parts, -1))


def _set(x: Tensor, index: Any, value: Any) -> None:
    """`x[index] = value`, written into the pairs."""
    items = index if isinstance(index, tuple) else (index,)
    if any(item is ... for item in items):
        items = (*items, slice(None))
    torch.view_as_real(x)[items] = _pairs(value, x)


def _padded(transform: Callable[..., Tensor], *, half: bool = False) -> _Form:
    """A transform of `n` values, `half` of them stored, that are padded before it."""

    def form(x: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
        wanted = x.shape[dim] if n is None else n // 2 + 1 if half else n
        missing = wanted - x.shape[dim]
        if missing > 0:
            behind = x.dim() - 1 - dim % x.dim()
            x = _pad(x, [0, 0] * behind + [0, missing])
        return transform(x, n, dim, norm)

    return form


_FORMS: dict[Any, _Form] = {
    torch.zeros: _zeros,
    torch.zeros_like: _zeros_like,
    torch.ones_like: _ones_like,
    Tensor.new_zeros: _new_zeros,
    F.pad: _pad,
    torch.where: _where,
    Tensor.where: lambda x, condition, other: _where(condition, x, other),
    torch.masked_fill: _masked_fill,
    Tensor.masked_fill: _masked_fill,
    torch.exp: _exp,
    Tensor.exp: _exp,
    torch.einsum: _einsum,
    Tensor.__setitem__: _set,
    torch.fft.fft: _padded(torch.fft.fft),
    torch.fft.ifft: _padded(torch.fft.ifft),
    torch.fft.irfft: _padded(torch.fft.irfft, half=True),
}
