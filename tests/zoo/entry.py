"""An entry of the zoo, and the start-up that its packages need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, Any]

# torchvision's wheel brings its C++ operators for one build of torch only. With another build the
# import stops where it registers shapes for them; models that call them are not in the zoo.
_SCHEMAS = ("nms", "qnms")
_kept: list[torch.library.Library] = []  # operators vanish with the object that defined them


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        name: unique in the zoo.
        package: where it comes from.
        build: makes the model with random weights, and its dummy input.
    """

    name: str
    package: str
    build: Callable[[], Built]


def package(name: str) -> Any:
    """A package of the zoo's environment; the ones that check this code need not have it."""
    _define_operators()
    return import_module(name)


def _define_operators() -> None:
    if _kept:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _SCHEMAS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


def floats(*shape: int) -> Tensor:
    """Random floats, the same in every process."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def tokens(rows: int = 2, length: int = 12, vocabulary: int = 100) -> Tensor:
    """Random token ids, the same in every process; never the first four, which are special."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(4, vocabulary, (rows, length), generator=rng)
