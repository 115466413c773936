"""Results of an earlier run that a model keeps: recorded anew, so that parameters stay in it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import prepare_model
from fxquant.errors import TraceError

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.table = nn.Linear(8, 8), nn.Parameter(torch.randn(5))
        self.register_buffer("index", torch.arange(8) % 5)
        self.cache: Any = None
        self.memo: dict[Any, Any] = {}

    def look_up(self) -> Tensor:
        index: Any = self.index
        return self.table[index]


class InAttribute(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = self.look_up()
        return torch.relu(self.fc(x) + self.cache)


class InDict(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] not in self.memo:
            self.memo[x.shape[1]] = (self.look_up(), 1)
        return torch.relu(self.fc(x) + self.memo[x.shape[1]][0])


class AsProperty(Base):
    @functools.cached_property
    def bias(self) -> Tensor:
        return self.look_up()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x) + self.bias)


class WhileGradients(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None or torch.is_grad_enabled():
            self.cache = self.look_up()
        return torch.relu(self.fc(x) + self.cache)


class BesideConstants(Base):
    """One of the kept tensors is the author's own and is never computed."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.arange(8.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = self.look_up()
        return torch.relu(self.fc(x) * self.factor + self.cache)


class MergedWeight(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return F.linear(x, self.fc.weight * self.table[0])
        if self.cache is None:
            self.cache = self.fc.weight * self.table[0]
        return F.linear(x, self.cache)


KINDS = (InAttribute, InDict, AsProperty, WhileGradients, BesideConstants, MergedWeight)


@pytest.mark.parametrize("ran", ["never", "with gradients", "without"])
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_behind_kept_results_stay_in_the_graph(kind: type[Base], ran: str) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    if ran != "never":
        with torch.set_grad_enabled(ran == "with gradients"):
            model(X)
    prepared: Any = prepare_model(model, X)
    fresh: Any = kind().eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(prepared(X), fresh(X))
    prepared(X).sum().backward()
    assert prepared.table.grad.abs().sum() > 0
    with torch.no_grad():
        prepared.table.mul_(2)
    changed: Any = kind().eval()
    changed.load_state_dict(prepared.state_dict())
    assert torch.equal(prepared(X), changed(X))
    if kind in (InAttribute, BesideConstants) and ran != "never":
        assert model.cache is not None  # the model itself is left alone


OUTSIDE: dict[str, Tensor] = {}


class Outside(Base):
    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in OUTSIDE:
            OUTSIDE["bias"] = self.look_up()
        return torch.relu(self.fc(x) + OUTSIDE["bias"])


def test_results_that_are_kept_outside_of_the_model_are_refused() -> None:
    OUTSIDE.clear()
    model = Outside().eval()
    model(X)
    with pytest.raises(TraceError, match=r"FXQ125: .* computed from 'table' is kept outside"):
        prepare_model(model, X)
    OUTSIDE.clear()
    prepare_model(model, X)


class FilledForEvaluation(Base):
    """Computes what evaluation needs when it is switched to it."""

    def train(self, mode: bool = True) -> FilledForEvaluation:
        super().train(mode)
        self.memo = {} if mode else {"bias": self.look_up()}
        return self

    def forward(self, x: Tensor) -> Tensor:
        bias = self.look_up() if self.training else self.memo["bias"]
        return torch.relu(self.fc(x) + bias)


def test_modules_that_fill_their_cache_in_train() -> None:
    model = FilledForEvaluation().eval()
    assert torch.equal(prepare_model(model, X)(X), model(X))


class Itself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._modules["me"] = self

    def forward(self, x: Tensor) -> Tensor:
        return x


class Bare(nn.Module):
    def __init__(self) -> None:
        """Forgets to call the base class."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.eye(8).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        a: Any = self.a
        y: Tensor = torch.sparse.mm(a, x.T)
        return y.T


@pytest.mark.parametrize("kind", [Itself, Bare, Sparse])
def test_modules_that_no_graph_can_hold(kind: type[nn.Module]) -> None:
    with pytest.raises(TraceError, match="FXQ117"):
        prepare_model(kind(), X)
