"""Which modules are recorded as one ``call_module`` and which are recorded through."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

Leaves: TypeAlias = Callable[[str, nn.Module], bool]

_THROUGH = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
# what a subclass may define without changing what the class computes
_HARMLESS = frozenset({"extra_repr", "reset_parameters", "_check_input_dim", "_get_name"})
_cache: dict[type, bool] = {}


def is_leaf_class(kind: type[nn.Module]) -> bool:
    """Whether the class computes exactly what a class of ``torch.nn`` does.

    A subclass that overrides ``forward`` (or a helper of it, as ``_conv_forward``) is recorded
    through, because nobody but its author knows what it computes.

    >>> is_leaf_class(nn.Conv2d), is_leaf_class(nn.Sequential)
    (True, False)
    """
    if kind not in _cache:
        _cache[kind] = _is_leaf_class(kind)
    return _cache[kind]


def _is_leaf_class(kind: type[nn.Module]) -> bool:
    if issubclass(kind, torch.jit.ScriptModule):
        return True
    if issubclass(kind, _THROUGH):
        return False
    for base in kind.__mro__:
        if base is nn.Module or "__call__" in vars(base):
            return False  # a node would call what was recorded around the leaf once more
        if issubclass(base, nn.Module) and _is_house_class(base):
            # torch's parametrize makes such a class around a user's class as well
            return "forward" in _methods(base) and not _overrides(kind, base)
        if "forward" in vars(base):
            return False
    return False


def _is_house_class(kind: type) -> bool:
    module = kind.__module__
    if module.startswith("torch.nn.utils"):
        return "forward" in vars(kind)
    return module.startswith(("torch.nn.", "torch.ao.nn.qat", "fxquant.nn"))


def _methods(base: type) -> set[str]:
    """Names that a class of torch and its parents below ``nn.Module`` define."""
    bases = base.__mro__[: base.__mro__.index(nn.Module)]
    return {name for b in bases for name in vars(b)}


def _overrides(kind: type, base: type) -> bool:
    own = _methods(base) - set(vars(nn.Module)) | {"forward"}
    above = kind.__mro__[: kind.__mro__.index(base)]
    changed = {name for b in above for name in vars(b)}
    return bool({n for n in own & changed if not n.startswith("__")} - _HARMLESS)
