"""Parameters that a model and its copy have in common: each is what the other is put back from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class TwinParameters:
    """Puts parameters back that a run wrote to, without a copy of them all.

    Only one of the two modules runs at a time, so the other one's parameters are what they were.
    Before the other one runs, those of the first are compared and put back.

    Args:
        first: a module.
        second: another one, whose parameters of the same names are equal.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        self._ran: int | None = None
        self._kept = {
            id(module): [*_kept(module, other)]
            for module, other in ((first, second), (second, first))
        }

    def running(self, module: nn.Module) -> None:
        """Say that one of the modules is about to run."""
        if self._ran not in (None, id(module)):
            self.settle()
        self._ran = id(module)

    def settle(self) -> None:
        """Put the parameters of the module that ran last back, values and identity."""
        with torch.no_grad():
            for holder, name, tensor, value in self._kept[self._ran] if self._ran else ():
                if isinstance(holder, dict):  # those of scripted modules are read-only views
                    holder[name] = tensor
                # not by version: writes through .data do not raise it
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
        self._ran = None


_Entry = tuple["dict[str, Tensor | None]", str, "Tensor", "Tensor"]


def _kept(module: nn.Module, other: nn.Module) -> Iterator[_Entry]:
    """Every parameter: where it is held, by which name, itself, and what holds its values."""
    there = dict(other.named_parameters(remove_duplicate=False))
    for path, part in module.named_modules():
        for name, tensor in part._parameters.items():
            if tensor is None:
                continue
            twin = there.get(f"{path}.{name}".lstrip("."))
            if twin is None or twin is tensor or not _alike(tensor, twin):
                twin = tensor.detach().clone()
            yield part._parameters, name, tensor, twin.detach()


@contextmanager
def parameters_kept(first: nn.Module, second: nn.Module) -> Iterator[TwinParameters]:
    """Both modules have their parameters back afterwards."""
    twins = TwinParameters(first, second)
    try:
        yield twins
    finally:
        twins.settle()


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
