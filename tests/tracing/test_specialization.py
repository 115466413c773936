"""Sizes stay dynamic; where Python decides on a size or a value, the line is told."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.graph.symbolic_ints import Change, TFloat, TInt, Trail, plain, tracked
from fxquant.models.difficult import rows
from fxquant.tracing.record import record
from fxquant.tracing.replay import replay_equal
from fxquant.tracing.specialization import Specialisation


class Net(nn.Module):
    """A network around a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def looks(function: Callable[..., Any], *args: Tensor) -> list[tuple[str, str, Any]]:
    found = record(Net(function), args, {}).specialisations
    return [(s.kind, s.what, s.value) for s in found]


def sum_if_positive(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


VALUES = {
    "bool()": sum_if_positive,
    "item()": lambda x: x * x.sum().item(),
    "int()": lambda x: x * int(x.sum()),
    "float()": lambda x: x * float(x.max()),
    "tolist()": lambda x: x * x[0].tolist()[0],
    "numpy()": lambda x: x * float(x.detach().numpy().sum()),
    "equal()": lambda x: x if torch.equal(x, x * 1) else -x,
    "contains()": lambda x: x if 5 in x else -x,
}


@pytest.mark.parametrize("what", VALUES)
def test_looks_at_values_are_told(what: str) -> None:
    found = looks(VALUES[what], rows(2, 3))
    assert [(kind, how) for kind, how, _ in found] == [("value", what)]


def test_a_look_names_line_module_and_decision() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net(sum_if_positive)

        def forward(self, x: Tensor) -> Any:
            return self.inner(self.inner(x))

    found = record(Outer(), (rows(2, 3).abs(),), {}).specialisations
    assert len(found) == 1
    one = found[0]
    assert isinstance(one, Specialisation)
    assert one.source is not None
    assert one.source.text == "return x * 2 if x.sum() > 0 else x"
    assert str(one.source).startswith("tests/tracing/test_specialization.py:")
    assert (one.module_path, one.value) == ("inner", (True, True))


STATIC = {
    "weights": lambda x: x * torch.linspace(0, 1, 3).tolist()[1],
    "channels of a convolution": lambda x: (
        F.conv2d(x[None, :, None], torch.ones(4, 2, 1, 1)).shape[1] % 2 * x
    ),
    "what a view says": lambda x: x * math.sqrt(x.view(-1, 3, 1).size(1)),
    "number of dimensions": lambda x: x if x.dim() == 2 and x.is_floating_point() else -x,
    "shapes of constants": lambda x: x if len(torch.zeros(3)) == 3 else -x,
}


@pytest.mark.parametrize("case", STATIC)
def test_what_cannot_change_is_no_decision(case: str) -> None:
    assert looks(STATIC[case], rows(2, 3)) == []


SIZES = {
    "comparison": lambda x: x if x.shape[0] > 1 else -x,
    "bool()": lambda x: x if x.shape[0] else -x,
    "int()": lambda x: x * int(x.shape[0]),
    "float()": lambda x: x * math.sqrt(x.size(0)),
    "range()": lambda x: sum(x[i] for i in range(len(x))),
    "repetition": lambda x: x * len([0] * x.shape[0]),
    "number of items": lambda x: sum(x.unbind(0)),
}


@pytest.mark.parametrize("what", SIZES)
def test_decisions_on_sizes_are_told(what: str) -> None:
    found = looks(SIZES[what], rows(2, 3))
    assert ("size", what) in [(kind, how) for kind, how, _ in found]


def test_sizes_that_depend_on_values_count_as_values() -> None:
    def pick(x: Tensor) -> Tensor:
        chosen = x[x > 0]
        return x * 2 if chosen.shape[0] > 1 else x

    assert looks(pick, rows(2, 3).abs()) == [("value", "comparison", True)]


DYNAMIC: dict[str, Callable[[Tensor], Any]] = {
    "arange": lambda x: x + torch.arange(x.shape[0])[:, None],
    "zeros": lambda x: torch.zeros(x.shape[0], 2),
    "full": lambda x: torch.full((len(x), 1), 2.0),
    "new_ones": lambda x: x.new_ones(x.size(0)),
    "tensor": lambda x: torch.tensor([x.shape[0], x.numel()]),
    "linspace": lambda x: torch.linspace(0, 1, x.shape[0]),
    "view": lambda x: x.view(x.shape[0] * 3),
    "slices": lambda x: x[: x.shape[0] // 2, x.shape[1] - 2 :],
    "expand": lambda x: torch.ones(1, 1).expand(x.shape[0], 3) * x,
    "division": lambda x: x.sum(0) / x.shape[0],
    "powers": lambda x: x * x.shape[0] ** -0.5 * 2 ** -x.shape[0],
    "rounding": lambda x: x[: math.ceil(x.shape[0] / 2)].sum() + round(x.shape[0] / 4),
    "negation": lambda x: x * -x.shape[0] + abs(-x.shape[0]) - +x.shape[0],
    "modulo": lambda x: F.pad(x, (0, 0, 0, (4 - x.shape[0] % 4) % 4)),
    "repeat": lambda x: x[:1].repeat(x.shape[0], 1),
    "products": lambda x: x * math.prod(x.shape) * x.shape[0],
    "size in an index": lambda x: x[x.shape[0] - 1],
    "interpolate": lambda x: F.interpolate(x[None], size=x.shape[0] * 2),
}


@pytest.mark.parametrize("case", DYNAMIC)
def test_batch_sizes_stay_dynamic(case: str) -> None:
    model = Net(DYNAMIC[case])
    recording = record(model, (rows(2, 3),), {})
    for n in (2, 5, 7):
        found = replay_equal(recording, model, (rows(n, 3),), {})
        assert found, f"{n} rows: {found.why}"


def test_a_size_is_read_where_the_model_read_it() -> None:
    def resized(x: Tensor) -> Any:
        x = x * 1
        before = x.shape[0]
        x.t_()
        return x, torch.zeros(before), torch.zeros(x.shape[0])

    model = Net(resized)
    recording = record(model, (rows(2, 3),), {})
    assert replay_equal(recording, model, (rows(4, 3),), {})


def test_sizes_of_weights_leave_no_trace() -> None:
    model = Net(lambda x: F.linear(x, torch.ones(4, 3)).view(x.shape[0], 2, -1))
    gm = record(model, (rows(2, 3),), {}).graph_module
    sizes = [n.args for n in gm.graph.nodes if n.target == "size"]
    assert len(sizes) == 1


class Keeper:
    """Stands in for a recorder."""

    closed = False

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def arithmetic(self, op: Any, operands: Any, value: Any) -> Any:
        raise NotImplementedError

    def read_data(self, change: Change, what: str, value: object) -> None:
        self.seen.append((what, value))


def no_node() -> Any:
    raise NotImplementedError


def number(value: float) -> tuple[Any, Keeper]:
    keeper = Keeper()
    return tracked(value, Trail(keeper, Change.SIZE, no_node)), keeper


def test_tracked_numbers_are_numbers() -> None:
    n, keeper = number(6)
    assert isinstance(n, int)
    assert isinstance(n * 2, TInt)
    assert isinstance(n / 4, TFloat)
    assert [plain(v) for v in (n * 2, 2 * n, n - 1, 1 - n, n // 4, n % 4, -n, n / 4, 12 // n)] == [
        12, 12, 5, -5, 1, 2, -6, 1.5, 2
    ]  # fmt: skip
    assert keeper.seen == []
    assert (n == 6, n < 3, {6: "six"}[n]) == (True, False, "six")
    assert keeper.seen[:2] == [("comparison", True), ("comparison", False)]


def test_tracked_numbers_outside_of_a_recording_are_bare() -> None:
    n, keeper = number(6)
    assert type(copy.deepcopy(n)) is int
    assert type(pickle.loads(pickle.dumps(n))) is int
    keeper.closed = True
    assert type(n + 1) is int
    assert n == 6
    assert keeper.seen == []
