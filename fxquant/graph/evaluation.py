"""Evaluation mode for a while, in the one way that holds for every module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[dict[str, bool]]:
    """The model in evaluation; yields its training flags by path and puts them back.

    The flags are set one by one: `eval()` calls `train()`, which a model may override to keep
    parts frozen or to keep its dropout alive, and in which quantized modules drop kept weights.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    flags = {path: module.training for path, module in modules.items()}
    try:
        for module in modules.values():
            module.training = False
        yield flags
    finally:
        for path, module in modules.items():
            module.training = flags[path]
