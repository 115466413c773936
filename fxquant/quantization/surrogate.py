"""The gradient of the straight-through estimator: where it passes, and the sums for a range.

    dx       = g where x rounds to a value of the grid, both ends included, 0 where it is clipped
                                                            (one `hardtanh_backward`)
    products = sum g * y - sum dx * x                        d scale = products / scale
    outside  = sum g - sum dx                                d zero  = -scale * outside

which is the gradient of the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432) with
learned steps (Esser et al. 2020, arXiv:1902.08153, eq. 3), summed up before it is multiplied out.
Where the extremes of a tensor lie within the grid, nothing is clipped and `dx` is `g`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fxquant.quantization.clipping import Clipped, outside_of, where
from fxquant.quantization.pieces import in_one, pieces

if TYPE_CHECKING:
    from collections.abc import Callable

    from fxquant.quantization.kernels import Affine
    from fxquant.quantization.range_to_qparams import Factors

hardtanh_backward: Callable[[Tensor, Tensor, float, float], Tensor] = (
    torch.ops.aten.hardtanh_backward.default
)
hardtanh_backward_out: Callable[..., Tensor] = torch.ops.aten.hardtanh_backward.grad_input
_LARGE = 5 << 20  # elements beyond which passes over memory count

Extremes = tuple[Tensor, Tensor]


def factors_for(
    x: Tensor, p: Affine, factors: Factors, extremes: Extremes | None = None
) -> Factors:
    """The factors, which depend on the tensor where one end of the range lies at zero."""
    if factors.at_zero is None:
        return factors
    x, scale = x.detach(), p.scale
    if extremes is not None:
        return factors.keep_zeros(*extremes, scale)
    if scale.numel() == 1:
        return factors.keep_zeros(*torch.aminmax(x), scale)
    shape = (1,) * (x.dim() - scale.dim()) + tuple(scale.shape)
    dims = [d for d, n in enumerate(shape) if n == 1]
    seen = (x.amin(dims), x.amax(dims)) if dims else (x, x)
    return factors.keep_zeros(*seen, scale)


def inside(g: Tensor, x: Tensor, p: Affine) -> Tensor:
    """The gradient where `x` rounds to a value of the grid, zero where it is clipped."""
    if p.numbers is not None:
        return hardtanh_backward(g, x, *_edges(p, p.numbers, x.dtype))
    integers = torch.div(x, p.scale).round_()
    if not p.centred:
        integers.add_(p.zero_point)
    return hardtanh_backward(g, integers, p.qmin - 0.5, p.qmax + 0.5)


def finite(x: Tensor) -> Tensor:
    """The tensor with a large number in the place of infinity, which is clipped as well.

    A clipped element counts with a gradient of zero, and zero times infinity is no number.
    """
    # can be divided by the square of a step of usual size
    return x.nan_to_num(nan=torch.nan, posinf=2.0**66, neginf=-(2.0**66))


def clipped_by(x: Tensor, p: Affine, extremes: Extremes | None) -> tuple[Clipped, Tensor | None]:
    """Where `inside` stops the gradient."""
    if p.numbers is not None and x.is_cpu:
        low, high = _edges(p, p.numbers, x.dtype)
        if extremes is None:
            return outside_of(x, low, high)
        # not-a-number compares as neither
        below, above = not extremes[0].item() > low, not extremes[1].item() < high
        return outside_of(x, low if below else None, high if above else None)
    integers = torch.div(x, p.scale).round_().add_(p.zero_point)
    return where((integers < p.qmin).logical_or_(integers > p.qmax))


def _edges(p: Affine, numbers: tuple[float, float], dtype: torch.dtype) -> tuple[float, float]:
    """The nearest values below and above the grid that are clipped."""
    scale, zero = numbers
    kind = np.float64 if dtype is torch.float64 else np.float32
    return -_beyond(zero - p.qmin, scale, kind), _beyond(p.qmax - zero, scale, kind)


@functools.lru_cache(maxsize=4096)
def _beyond(last: float, scale: float, kind: type[np.floating[Any]]) -> float:
    """The smallest value that is rounded to more than `last` steps.

    Half a step away there is a tie, and the quotient is rounded before that: this is exact.
    """
    if not 0.0 < scale < np.inf:
        return (last + 0.5) * scale
    with np.errstate(over="ignore"):
        step, end, x = kind(scale), kind(last), kind((last + 0.5) * scale)
        while np.rint(x / step) > end:
            x = np.nextafter(x, kind(-np.inf))
        while np.rint(x / step) <= end:
            x = np.nextafter(x, kind(np.inf))
    return float(x)


def _inside_into(out: Tensor, g: Tensor, x: Tensor, p: Affine, scale: Tensor, zero: Tensor) -> None:
    """As `inside` for many steps, of a piece, without another tensor."""
    torch.div(x, scale, out=out).round_()
    if not p.centred:
        out.add_(zero)
    hardtanh_backward_out(g, out, p.qmin - 0.5, p.qmax + 0.5, grad_input=out)


def kept(g: Tensor, x: Tensor, p: Affine) -> Tensor:
    """As `inside`, in pieces where that is faster."""
    if p.numbers is not None or torch.is_grad_enabled() or in_one(x):
        return inside(g, x, p)
    dx = torch.empty_like(x)
    for (out, part, grad), steps in pieces((dx, x, g), (p.scale, p.zero_point)):
        _inside_into(out, grad, part, p, *steps)
    return dx


def gradients_of_many(
    g: Tensor, x: Tensor, y: Tensor, p: Affine, *, outside: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of `x`, and the sums `products` and `outside` in the shape of the step."""
    x = finite(x) if x.is_cuda else x
    dx = torch.empty_like(x)
    sums = torch.zeros_like(p.scale), torch.zeros_like(p.scale)
    tensors, values = (dx, x, g, y), (p.scale, p.zero_point, *sums)
    cut = [(tensors, values)] if in_one(x) else pieces(tensors, values)
    for (out, part, grad, result), (scale, zero, products, beyond) in cut:
        _inside_into(out, grad, part, p, scale, zero)
        mixed = torch.mul(grad, result).addcmul_(out, part, value=-1.0)
        products += mixed.sum_to_size(scale.shape)
        if outside:
            beyond += grad.sum_to_size(scale.shape) - out.sum_to_size(scale.shape)
    # on an accelerator looking is a wait
    if not x.is_cuda and bool(sums[0].isnan().any()) and bool(x.isinf().any()):
        return gradients_of_many(g, finite(x), y, p, outside=outside)
    return dx, *sums


def gradients_of_one(
    g: Tensor, x: Tensor, y: Tensor, p: Affine, *, outside: bool, unclipped: bool
) -> tuple[Tensor, float, float]:
    """As `gradients_of_many` where there is one step, known as a number."""
    if unclipped:  # the gradient passes as it is
        cut = [(x, g, y)] if in_one(x) else [tensors for tensors, _ in pieces((x, g, y), ())]
        return g, sum(_sums(grad, y, grad, x, outside=False)[0] for x, grad, y in cut), 0.0
    edges = _edges(p, p.numbers, x.dtype)  # type: ignore[arg-type]
    if in_one(x):
        dx = hardtanh_backward(g, x, *edges)
        return dx, *_sums(g, y, dx, x, outside=outside)
    dx = torch.empty_like(x)
    products = beyond = 0.0
    for (out, part, grad, result), _ in pieces((dx, x, g, y), ()):
        hardtanh_backward_out(grad, part, *edges, grad_input=out)
        sums = _sums(grad, result, out, part, outside=outside)
        products, beyond = products + sums[0], beyond + sums[1]
    return dx, products, beyond


def _sums(g: Tensor, y: Tensor, dx: Tensor, x: Tensor, *, outside: bool) -> tuple[float, float]:
    """`products` and `outside` as numbers."""
    beyond = g.sum().item() - dx.sum().item() if outside else 0.0
    if not (x.is_contiguous() and g.is_contiguous()):
        return (g * y).sum().item() - (dx * x).sum().item(), beyond
    if x.dim() != 1:
        g, y, dx, x = g.view(-1), y.view(-1), dx.view(-1), x.view(-1)
    return torch.dot(g, y).item() - torch.dot(dx, x).item(), beyond


def extremes_of(x: Tensor) -> Extremes:
    """Smallest and largest element."""
    # `aminmax` is one pass and slow, the others are two passes and vectorized
    return torch.aminmax(x) if x.numel() > _LARGE and x.is_contiguous() else (x.amin(), x.amax())


def none_clipped(extremes: Extremes, p: Affine, dtype: torch.dtype) -> bool:
    """Whether no element is clipped; False for not-a-number."""
    low, high = extremes
    if p.numbers is not None:
        below, above = _edges(p, p.numbers, dtype)
        return low.item() > below and high.item() < above
    # rounding is monotone
    first, last = (torch.div(end, p.scale).round_().add_(p.zero_point) for end in extremes)
    return bool((first >= p.qmin).all() and (last <= p.qmax).all())
