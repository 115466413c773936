"""What modules compute in training only: kept whole, or told."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.prepare import SpecialisationWarning, prepare_model
from fxquant.tracing.record import record
from fxquant.validate import validate_model


class Branch(nn.Module):
    """Another graph in training, beside parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if self.training:
            y = y + torch.tanh(x)
        return y  # type: ignore[no-any-return]


class Scaled(Branch):
    """The same calls with another number."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * (2.0 if self.training else 1.0)  # type: ignore[no-any-return]


class Averaged(Branch):
    """A buffer that is written in training."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean(0))
        return self.fc(x - self.mean)  # type: ignore[no-any-return]


class Auxiliary(nn.Module):
    """A root whose own code only calls modules, one of them in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.aux = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        if self.training:
            return y, self.aux(y)
        return y


class Demanding(nn.Module):
    """A root that cannot train on what it evaluates on."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        y = self.fc(x)
        if self.training:
            if target is None:
                message = "give a target"
                raise ValueError(message)
            return F.mse_loss(y, target)
        return y


class Flagged(nn.Module):
    """Flags, probabilities and a counter are followed: nothing to tell."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.bn = nn.BatchNorm1d(4)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count.add_(1)
        b = self.bn
        y = F.batch_norm(
            self.fc(x), b.running_mean, b.running_var, b.weight, b.bias, self.training, 0.1
        )
        return F.dropout(y, 0.5, self.training)


@pytest.mark.parametrize("kind", [Branch, Scaled, Averaged])
def test_a_training_branch_beside_parameters_is_told_once_with_its_place(kind: Any) -> None:
    with pytest.warns(SpecialisationWarning, match=r"test_training_mode\.py:\d+ in 1") as told:
        gm = prepare_model(nn.Sequential(nn.Linear(4, 4), kind()), torch.randn(3, 4))
    assert len(told) == 1
    (found,) = (f for f in validate_model(gm, torch.randn(3, 4)).findings if f.code == "FXQ138")
    assert (found.severity, found.module) == ("warning", "1")


@pytest.mark.parametrize(
    ("net", "message"),
    [(Auxiliary(), r"test_training_mode\.py:\d+\n"), (Demanding(), "give a target")],
)
def test_so_is_one_of_the_whole_model(net: nn.Module, message: str) -> None:
    with pytest.warns(SpecialisationWarning, match=message):
        prepare_model(net, torch.randn(3, 4))


def test_a_module_kept_whole_trains_like_the_original_and_nothing_is_told() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Branch())
    x = torch.randn(3, 4)
    gm = prepare_model(net, x, modules_to_exclude=["1"])
    assert torch.equal(gm.train()(x), net.train()(x))


def test_training_flags_probabilities_and_counters_are_no_other_graph() -> None:
    net = Flagged()
    x = torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = prepare_model(net, x)
    results = []
    for module in (net.train(), gm.train()):
        torch.manual_seed(0)
        results.append(module(x))
    assert torch.equal(*results)


class Decides(nn.Module):
    """Python decides on a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Counts(nn.Module):
    """Python decides on the batch size."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[i] * 2 for i in range(x.shape[0])])


@pytest.mark.parametrize(
    ("net", "fix"),
    [
        (Decides(), "fix: move the decision into a module of its own"),
        (nn.Sequential(Decides()), 'fix: on_specialisation="leaf" keeps 0,'),
        (Counts(), "fix: compute with tensors what these lines compute with sizes"),
    ],
)
def test_the_fix_is_one_that_helps(net: nn.Module, fix: str) -> None:
    with pytest.warns(SpecialisationWarning, match=fix):
        prepare_model(net, torch.ones(3, 4))


class Dropping(nn.Module):
    """A probability that follows the mode, and nothing else."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__()
        self.note = rows.append

    def forward(self, x: Tensor) -> Tensor:
        self.note(x.untyped_storage().nbytes() // 16)
        return F.dropout(x.exp(), 0.5 if self.training else 0.0)


def test_one_row_shows_that_training_changes_modes_only() -> None:
    rows: list[int] = []
    gm = prepare_model(Dropping(rows).eval(), torch.randn(5, 4))
    assert rows == [5, 1, 3], "the second of them in training"
    assert bool((gm.train()(torch.ones(8, 64)) == 0).any())
    assert not bool((gm.eval()(torch.ones(8, 64)) == 0).any())


def test_training_that_needs_more_rows_is_seen_on_all() -> None:
    class Mixing(Branch):
        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            if self.training and len(x) > 1:
                y = y + torch.tanh(x)
            return y  # type: ignore[no-any-return]

    class Refusing(Branch):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and len(x) == 1:
                raise ValueError
            return super().forward(x)

    for kind in (Mixing, Refusing):
        with pytest.warns(SpecialisationWarning, match="while it trains"):
            prepare_model(kind().eval(), torch.randn(5, 4))


def _attend(module: nn.Module, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if module.training else 0.0)


@pytest.mark.parametrize("asks", [False, True])
def test_training_is_recorded_only_where_code_asked_for_the_flag(
    asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return _attend(self, x) if asks else F.scaled_dot_product_attention(x, x, x)

    modes = list[bool]()

    def recorded(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        modes.append(model.training)
        return record(model, *args, **kwargs)

    monkeypatch.setattr("fxquant.prepare.record", recorded)
    x = torch.randn(2, 6, 8)
    prepared = prepare_model(Net().eval(), x)
    assert modes == ([False, True] if asks else [False])
    assert torch.equal(prepared(x), prepared(x))
    prepared.train()
    assert torch.equal(prepared(x), prepared(x)) is not asks
    assert "training" not in vars(nn.Module)  # what was put there for the recording is gone
