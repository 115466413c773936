"""Parameter groups for optimizers: weights with one learning rate, ranges with one of their own.

A learning rate is an absolute size for optimizers such as Adam. Ranges differ by orders of
magnitude from one tensor to the next: what moves one by a thousandth doubles another. So the
learning rate of ranges is relative to their width, and ranges of similar width share a group.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fxquant.errors import TrainingError
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


def parameter_groups(
    model: nn.Module,
    lr: float,
    range_lr: float = 1e-3,
    *,
    weight_decay: float = 0.0,
    factors: Mapping[int, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimizer of `torch.optim`, of everything that trains.

    Args:
        model: a simulation's model, `sim.model`.
        lr: learning rate of weights, biases and norms.
        range_lr: learning rate of ranges in widths of the range: 1e-3 lets Adam move the ends of
            a range by a thousandth of its width in one step.
        weight_decay: of weights; ranges have none.
        factors: `id` of a quantizer -> factor of its learning rate; see `RangeSchedule`.

    Returns:
        The weights first, then the ranges by their width, from wide to narrow. Keys: `name`,
        `params`, `lr`, `weight_decay`. With a scheme that does not learn ranges there is one group.

    Raises:
        TrainingError: FXQ801, nothing trains, or a learning rate is no positive number.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(4, 3)
        >>> scheme = "training_range_learning_with_tf_init"
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), x, scheme)
        >>> sim.compute_encodings([x])
        >>> groups = parameter_groups(sim.model, lr=1e-4, range_lr=1e-3)
        >>> optimizer = torch.optim.Adam(groups)
        >>> groups[0]["name"], groups[0]["lr"]
        ('weights', 0.0001)
    """
    rates: tuple[tuple[str, Any], ...] = (("lr", lr), ("range_lr", range_lr))
    for name, rate in rates:
        if not (isinstance(rate, (int, float)) and math.isfinite(rate) and rate >= 0.0):
            what = f"{name} is {rate!r}"
            raise TrainingError("FXQ801", what, fix="pass a finite number that is not negative")
    ranges: dict[tuple[int, float], list[nn.Parameter]] = {}
    inner: set[int] = set()
    for module in model.modules():
        if isinstance(module, QuantizerBase):
            own = [p for p in module.parameters(recurse=False) if id(p) not in inner]
            inner |= {id(p) for p in own}
            trained = [p for p in own if p.requires_grad]
            if trained:
                factor = 1.0 if factors is None else factors.get(id(module), 1.0)
                ranges.setdefault((_exponent(module), factor), []).extend(trained)
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in inner]
    groups = [{"name": "weights", "params": weights, "lr": lr, "weight_decay": weight_decay}]
    groups += [
        {
            "name": _name(exponent, factor), "params": ranges[exponent, factor],
            "lr": range_lr * 2.0**exponent * factor, "weight_decay": 0.0,
        }
        for exponent, factor in sorted(ranges, reverse=True)
    ]  # fmt: skip
    found = [group for group in groups if group["params"]]
    if not found:
        what = "nothing of the model trains: no parameter requires a gradient"
        raise TrainingError("FXQ801", what, fix="call requires_grad_() on what is to be trained")
    return found


def _name(exponent: int, factor: float) -> str:
    slower = "" if factor == 1.0 else f", {factor:g} times the rate"
    return f"ranges of width {2.0**exponent:g}{slower}"


def _exponent(quantizer: QuantizerBase) -> int:
    """The power of two nearest to the mean width of a quantizer's ranges."""
    low, high = quantizer.get_min(), quantizer.get_max()
    if low is None or high is None:
        what = "a range that trains is not calibrated"
        fix = "run compute_encodings() before making groups"
        raise TrainingError("FXQ801", what, at=quantizer.where, fix=fix)
    width = float((high - low).abs().mean())
    return round(math.log2(width)) if width > 0.0 else 0
