"""Models that hold more than parameters are prepared and simulated, and stay as they were."""

from __future__ import annotations

import copy
import functools
import io
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, prepare_model
from fxquant.errors import TraceError
from fxquant.graph.model_copy import deep_copy
from fxquant.tracing.replay import replay_equal

X = torch.randn(4, 8)


class Cached(nn.Module):
    """Keeps a bias that it computed under grad, as attention layers with tables do."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.table = nn.Linear(8, 8), nn.Parameter(torch.randn(5))
        self.register_buffer("index", torch.arange(8) % 5, persistent=False)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = str(x.device)
        if key not in self.cache:
            self.cache[key] = self.table[self.index]
        return torch.relu(self.fc(x) + self.cache[key])


class Kept(nn.Module):
    """Its hook keeps a result, which forward uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.kept: dict[str, Tensor] = {}
        self.history: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.relu(self.a(x)))
        self.history.append((y, {"again": [y]}))
        return y + self.kept["a"]  # type: ignore[no-any-return]


def bound() -> nn.Module:
    """A method of the model as hook."""
    net = Kept()

    def keep(self: Kept, module: nn.Module, args: Any, made: Tensor) -> None:
        self.kept["a"] = made

    net.a.register_forward_hook(types.MethodType(keep, net))
    return net


def closing() -> nn.Module:
    """A function over the model as hook."""
    net = Kept()

    def keep(module: nn.Module, args: Any, made: Tensor) -> None:
        net.kept["a"] = made

    net.a.register_forward_hook(keep)
    return net


def closing_over_a_part() -> nn.Module:
    """A function over the dict that the model holds, one function inside of another."""
    net = Kept()
    kept = net.kept
    net.a.register_forward_hook(lambda module, args, made: next(kept.update(a=m) for m in [made]))
    return net


def defaulting() -> nn.Module:
    """The model as a default argument, under `functools.partial`."""
    net = Kept()

    def keep(name: str, module: nn.Module, args: Any, made: Tensor, owner: Kept = net) -> None:
        owner.kept[name] = made

    net.a.register_forward_hook(functools.partial(keep, "a"))
    return net


class Weak(nn.Module):
    """A part that finds its owner by a weak reference."""

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.owner = weakref.ref(owner)

    def forward(self, x: Tensor) -> Tensor:
        owner: Any = self.owner()
        return x * owner.scale  # type: ignore[no-any-return]


class Owner(nn.Module):
    """Owns a part that refers back."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(8, 8), nn.Parameter(torch.tensor(3.0))
        self.part = Weak(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.fc(x))  # type: ignore[no-any-return]


class Cyclic(Owner):
    """Refers to itself in a list that holds itself, and from a lambda."""

    def __init__(self) -> None:
        super().__init__()
        self.own: list[Any] = [self]
        self.own.append(self.own)
        self.act: Callable[[Tensor], Tensor] = lambda x: torch.relu(x * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.own[0].fc(x))


class Handles(nn.Module):
    """Locks, files, generators: there are no copies of these."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.lock, self.file = threading.Lock(), io.StringIO()
        self.counter: Iterator[int] = (i for i in range(3))
        self.rng = torch.Generator().manual_seed(3)
        self.parts = {"lock": [threading.RLock()]}

    def forward(self, x: Tensor) -> Tensor:
        with self.lock, self.parts["lock"][0]:
            return torch.relu(self.fc(x))


class Remembering(nn.Module):
    """Remembers what a method returned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(8, 8), nn.Parameter(torch.ones(8))

    @functools.lru_cache  # noqa: B019
    def bias(self, size: int) -> Tensor:
        return self.scale * size

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x) + self.bias(x.shape[1]))


class Attribute(nn.Module):
    """Keeps its last result in an attribute, in a tuple and in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.space = nn.Linear(8, 8), types.SimpleNamespace(last=None)
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.fc(x))
        self.last, self.space.last = (y, x), y
        return y


NETS: list[Callable[[], nn.Module]] = [
    Cached, bound, closing, closing_over_a_part, defaulting, Owner, Cyclic, Handles, Remembering,
    Attribute,
]  # fmt: skip


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("make", NETS)
def test_prepared_and_simulated_as_the_readme_does(
    make: Callable[[], nn.Module], ran: bool
) -> None:
    net = make().eval()
    if ran:
        net(X)
    prepared = prepare_model(net, X)
    other = torch.randn(3, 8)
    assert torch.equal(prepared(other), net(other))
    sim = QuantizationSimModel(prepared, X)
    sim.compute_encodings([X])
    sim.model(X)
    assert bool(replay_equal(copy.deepcopy(prepared), net, (other,)))
    sim.get_original_model()


def state(net: nn.Module) -> dict[str, Any]:
    """What can be seen of a model from outside."""
    held = ("kept", "history", "cache", "last")
    return {n: str(vars(net).get(n)) for n in held} | {n: str(p) for n, p in net.named_parameters()}


@pytest.mark.parametrize("make", NETS)
def test_the_model_is_left_as_it_was(make: Callable[[], nn.Module]) -> None:
    net = make().eval()
    before = state(net)
    QuantizationSimModel(net, X).compute_encodings([X])
    assert state(net) == before


def test_gradients_reach_what_a_lambda_and_a_weak_reference_name() -> None:
    for make in (Cyclic, Owner):
        net: Any = make().eval()
        prepared: Any = prepare_model(net, X)
        net(X).sum().backward()
        prepared(X).sum().backward()
        assert torch.equal(prepared.scale.grad, net.scale.grad)


def test_a_hook_that_writes_elsewhere_goes_on_doing_so() -> None:
    net, seen = nn.Sequential(nn.Linear(8, 8)), []
    net[0].register_forward_hook(lambda module, args, made: seen.append(1))
    copied = deep_copy(net)
    copied(X)
    assert seen == [1]


def test_functions_that_share_a_cell_go_on_sharing_it() -> None:
    net: Any = nn.Linear(8, 8)
    count = 0

    def up(module: nn.Module, args: Any) -> None:
        nonlocal count
        count += net.in_features

    net.register_forward_pre_hook(up)
    net.read = lambda: (net, count)
    copied = deep_copy(net)
    copied(X)
    assert copied.read() == (copied, 8)
    assert net.read() == (net, 0)


def test_generators_of_random_numbers_are_copied() -> None:
    net = Handles()
    copied: Any = deep_copy(net)
    first = torch.rand(3, generator=copied.rng)
    assert torch.equal(first, torch.rand(3, generator=net.rng))
    assert copied.lock is net.lock
    assert copied.counter is net.counter


def test_a_model_that_cannot_be_copied() -> None:
    class Never(nn.Module):
        def __deepcopy__(self, memo: Any) -> Any:
            msg = "I am unique"
            raise RuntimeError(msg)

    with pytest.raises(TraceError, match=r"FXQ115.*I am unique"):
        prepare_model(nn.Sequential(Never()), X)


def test_attributes_that_can_change_are_copied() -> None:
    model = nn.Linear(2, 2)
    model.log, model.pattern = bytearray(b"a"), torch.fx.Graph()  # type: ignore[assignment]
    made = deep_copy(model)
    assert made.log == model.log
    assert made.log is not model.log
    assert made.pattern is not model.pattern
