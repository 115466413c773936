"""Ranges of weights, channel by channel, as they are and as they were before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.inspection.report.node_facts import grid_facts
from fxquant.nn import QuantizationMixin
from fxquant.ptq.walking.originals import float_value

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHANNELS = 64  # that a chart shows; of more, neighbours are put together


def weight_facts(
    module: nn.Module, path: str, before: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """Quantized parameters of a module.

    Args:
        module: the module.
        path: its path.
        before: parameters of the model before techniques, by name.

    Returns:
        For each: name `n`, type `t` and bits `b`, shape `s`, grid `g`, ranges of the channels `lo`
        and `hi`, the ratio of the largest to the smallest channel `r`; `blo`, `bhi` and `br` are
        the same of `before`, where it is known and differs.
    """
    if not isinstance(module, QuantizationMixin):
        return []
    found = []
    for name, quantizer in module.param_quantizers.active():
        value = getattr(module, name, None)
        if not isinstance(value, Tensor):
            continue
        grid = grid_facts(quantizer)
        axis = _axis(tuple(getattr(quantizer, "shape", ())), value.dim())
        entry: dict[str, Any] = {
            "n": name, "t": grid["t"], "b": grid["b"], "s": tuple(value.shape), "g": grid
        }  # fmt: skip
        entry |= _ranges(value.detach(), axis, "")
        old = before.get(f"{path}.{name}")
        if old is None:
            old = float_value(module, name)
        if old.shape == value.shape and not torch.equal(old.to(value), value.detach()):
            entry |= _ranges(old.detach(), axis, "b")
        found.append(entry)
    return found


def _axis(shape: tuple[int, ...], rank: int) -> int:
    """The axis of a weight that has channels: that of its grid, or the first."""
    # shapes of grids are laid against the weight's from the right
    return next((i + rank - len(shape) for i, n in enumerate(shape) if n > 1), 0)


def _ranges(value: Tensor, axis: int, prefix: str) -> dict[str, Any]:
    if value.dim() == 0 or not value.numel():
        return {}
    rows = value.float().movedim(min(axis, value.dim() - 1), 0).reshape(value.shape[axis], -1)
    low, high = rows.amin(1), rows.amax(1)
    size = torch.maximum(low.abs(), high.abs())
    some = size[size > 0]
    ratio = float(some.max() / some.min()) if some.numel() else 1.0
    return {
        f"{prefix}lo": _short(low, torch.amin), f"{prefix}hi": _short(high, torch.amax),
        f"{prefix}r": float(f"{ratio:.3g}"),
    }  # fmt: skip


def _short(values: Tensor, join: Any) -> list[float]:
    """At most so many numbers as a chart has room for."""
    if values.numel() > _CHANNELS:
        values = torch.stack([join(part, 0) for part in values.tensor_split(_CHANNELS)])
    return [float(f"{v:.3g}") for v in values.tolist()]
