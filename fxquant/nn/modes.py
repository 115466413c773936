"""Evaluation, or floating point, for a while.

Why not `model.eval()`: a model may override `train()` to keep parts frozen, or to keep its dropout
alive, and the flags that it had would not come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fxquant.nn.mixin import QuantizationMixin
from fxquant.nn.quantizer_places import QuantizerPlace, quantizer_places
from fxquant.quantization import QuantizerBase


@contextmanager
def evaluating(model: nn.Module, *, kept: bool = False) -> Iterator[dict[str, bool]]:
    """Every module evaluates; yields the training flags by path and puts them back.

    Args:
        model: the model.
        kept: quantized modules may go on using the quantized weights that they computed before.
            Otherwise they compute them again, which sees writes to `weight.data`, too.

    >>> net = nn.Dropout().train()
    >>> with evaluating(net) as flags:
    ...     print(net.training, flags)
    False {'': True}
    >>> net.training
    True
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    flags = {path: module.training for path, module in modules.items()}
    try:
        for module in modules.values():
            module.training = False
            if not kept and isinstance(module, QuantizationMixin):
                module.drop_kept()
        yield flags
    finally:
        for path, module in modules.items():
            module.training = flags[path]


def restore_flags(model: nn.Module, flags: dict[str, bool]) -> None:
    """Give a copy of a model the training flags of the original, by path."""
    for path, module in model.named_modules(remove_duplicate=False):
        if path in flags:
            module.training = flags[path]


def has_quantizers(module: nn.Module) -> bool:
    """Whether a module is a quantized one that holds a quantizer.

    >>> has_quantizers(QuantizationMixin.from_module(nn.ReLU()))
    False
    """
    return isinstance(module, QuantizationMixin) and any(
        isinstance(part, QuantizerBase) for part in module.modules()
    )


Kept = Callable[[str, str, Any, QuantizerBase], bool]
"""(path of a module, "input", "output" or "param", index or name, quantizer) -> whether it stays"""


@contextmanager
def quantizers_removed(model: nn.Module, kept: Kept) -> Iterator[None]:
    """Only some quantizers stand in their places for a while.

    Args:
        model: the model.
        kept: says which ones stay.

    Example:
        >>> import torch
        >>> from fxquant import QuantizationSimModel
        >>> net, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(8, 4)
        >>> sim = QuantizationSimModel(net, x)
        >>> sim.compute_encodings([x])
        >>> with quantizers_removed(sim.model, lambda path, role, key, quantizer: role == "param"):
        ...     sim.model.get_submodule("0").output_quantizers[0] is None
        True
    """
    taken: list[QuantizerPlace] = []
    try:
        for place in quantizer_places(model):
            if not kept(place.path, place.role, place.key, place.quantizer):
                taken.append(place)
                place.put(None)
        yield
    finally:
        for place in taken:
            place.put(place.quantizer)


@contextmanager
def quantization_off(model: nn.Module) -> Iterator[None]:
    """Compute in floating point for a while.

    Example:
        >>> import torch
        >>> from fxquant import QuantizationSimModel
        >>> net, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(8, 4)
        >>> sim = QuantizationSimModel(net, x)
        >>> sim.compute_encodings([x])
        >>> with quantization_off(sim.model):
        ...     bool(torch.equal(sim.model(x), net(x)))
        True
    """
    switched = [m for m in model.modules() if isinstance(m, QuantizerBase) and m.enabled]
    try:
        for quantizer in switched:
            quantizer.enabled = False
        yield
    finally:
        for quantizer in switched:
            quantizer.enabled = True
