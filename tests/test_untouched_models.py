"""Whatever a model does to itself while it runs, the model that was handed over stays as it was."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, inspect_model, prepare_model, quantize, validate_model
from fxquant.errors import FxQuantError

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Nasty(nn.Module):
    """A small network; what it does beside computing is up to `act`."""

    act: ClassVar[Callable[[Any, Tensor], Any]]
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.last.bias.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(2))
        self.plain, self.log, self.runs = torch.ones(2), [1], 0
        self.norm.eval()
        self.fc.register_forward_hook(lambda module, args, made: None)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.fc(x)))
        self.act(y)
        return self.last(y)  # type: ignore[no-any-return]


def writes(self: Any, y: Tensor) -> None:
    self.fc.weight.data.mul_(1.5)
    self.seen.add_(1.0)
    self.norm.running_mean.data += 1.0
    self.plain.mul_(2.0)


def writes_the_same_again(self: Any, y: Tensor) -> None:
    self.fc.weight.data.clamp_(min=-0.1)


def resizes(self: Any, y: Tensor) -> None:
    self.last.weight.data = self.last.weight.data[:2] * 2.0
    self.last.bias = nn.Parameter(self.last.bias[:2])
    self.seen.resize_(5)


def replaces(self: Any, y: Tensor) -> None:
    self.fc.weight = nn.Parameter(self.fc.weight.detach() * 2.0)
    self.seen = self.seen + 1.0
    self.register_buffer("new", torch.ones(1))
    self.more = nn.Linear(2, 2)
    del self.plain


def draws(self: Any, y: Tensor) -> None:
    y.add_(torch.rand(6) * random.random() + float(np.random.rand()))


def draws_without_effect(self: Any, y: Tensor) -> None:
    torch.rand(3), random.random(), np.random.rand()


def counts(self: Any, y: Tensor) -> None:
    self.runs += 1
    self.log.append(self.runs)


def switches(self: Any, y: Tensor) -> None:
    self.train()
    self.fc.weight.requires_grad_(False)
    self.last.bias.requires_grad_(True)
    self.last.register_forward_hook(lambda module, args, made: made * 2.0)
    self.fc._forward_hooks.clear()


def learns(self: Any, y: Tensor) -> None:
    with torch.enable_grad():
        self.last(y.detach()).sum().backward()


def writes_and_fails(self: Any, y: Tensor) -> None:
    writes(self, y)
    switches(self, y)
    draws(self, y)
    if self.seen[0] > 1.0 or len(y) != len(X):
        msg = "another time, not here"
        raise ValueError(msg)


ACTS = [writes, writes_the_same_again, resizes, replaces, draws, draws_without_effect, counts,
        switches, learns, writes_and_fails]  # fmt: skip


def fingerprint(model: nn.Module) -> list[Any]:
    """Everything of a model, and of the process, that a run of the model could change."""
    found: list[Any] = [torch.get_rng_state().tolist(), random.getstate()]
    found += [str(np.random.get_state()), torch.is_grad_enabled()]
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            held = value.items() if isinstance(value, dict) else [("", value)]
            found += [(path, name, key, id(part), _said(part)) for key, part in held]
    return found


def _said(value: Any) -> Any:
    if isinstance(value, Tensor):
        grad = None if value.grad is None else (id(value.grad), value.grad.tolist())
        return (
            value.tolist(),
            value.dtype,
            value.requires_grad,
            grad,
            value.untyped_storage().nbytes(),
        )
    return str(value)


ENTRIES: list[Callable[[nn.Module, Tensor], object]] = [
    prepare_model, QuantizationSimModel, validate_model, inspect_model
]  # fmt: skip


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
def test_a_model_stays_as_it_was(
    entry: Callable[[nn.Module, Tensor], object], act: Callable[..., None]
) -> None:
    check(entry, act)


@pytest.mark.parametrize("act", [writes_the_same_again, counts], ids=lambda act: act.__name__)
def test_a_model_stays_as_it_was_when_all_is_done_in_one_call(
    act: Callable[..., None], tmp_path: Path
) -> None:
    check(lambda model, x: quantize(model, [x], out=tmp_path, techniques="none"), act)


def check(entry: Callable[[nn.Module, Tensor], object], act: Callable[..., None]) -> None:
    model = type("Net", (Nasty,), {"act": act})()
    model.norm.weight.grad = torch.ones(6)
    before, x = fingerprint(model), X.clone()
    with warnings.catch_warnings(), contextlib.suppress(FxQuantError):
        warnings.simplefilter("ignore")
        entry(model, x)
    after = fingerprint(model)
    assert [a for a, b in zip(after, before, strict=True) if a != b] == []
    assert torch.equal(x, X)
