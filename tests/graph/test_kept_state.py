"""What a run does to the tensors of a module is put back, from another module's or from copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import prepare_model
from fxquant.errors import TraceError
from fxquant.graph.kept_state import KeptState, writes_show
from fxquant.models.difficult import NETWORKS, Case
from fxquant.tracing import equivalence
from fxquant.tracing.equivalence import Proof
from fxquant.tracing.record import Recording, record


class Projecting(nn.Module):
    """Keeps its weights above zero, as networks with monotonic outputs do: a run more is none."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.plain = torch.ones(2)
        self.scale = nn.Parameter(torch.tensor([float("nan"), -1.0, 1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.fc.weight.data.clamp_(min=0.0)
            self.scale.data = self.scale.data.clamp(min=0.0)
        return torch.nan_to_num(self.fc(x) * self.scale)


def _writes(module: Projecting) -> None:
    module.fc.weight.data.clamp_(min=0.0)  # the version does not tell


def _replaces(module: Projecting) -> None:
    module.fc.bias = nn.Parameter(module.fc.bias + 1.0)
    module.fc.register_parameter("more", nn.Parameter(torch.ones(2)))


def _resizes(module: Projecting) -> None:
    module.scale.data = module.scale.data[:2] * 3.0
    module.fc.weight.requires_grad_(False).resize_(6, 6)
    module.fc.bias.data = module.fc.bias.data.half()


def _empties(module: Projecting) -> None:
    module.fc.weight.untyped_storage().resize_(0)
    del module.fc.bias


def _counts(module: Projecting) -> None:
    module.count.add_(1)
    module.plain.zero_()


@pytest.mark.parametrize("run", [_writes, _replaces, _resizes, _empties, _counts])
@pytest.mark.parametrize("paired", [True, False])
def test_tensors_come_back(run: Callable[[Projecting], None], paired: bool) -> None:
    net = Projecting()
    net.register_buffer("count", torch.tensor(3))
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.fc.bias = nn.Parameter(torch.ones(5))  # of another shape: it has no twin
        other.fc.weight[0, 0] = -0.5  # nor has it: the values differ
    states = [KeptState(net), KeptState(other)]
    if paired:
        states[0].pair(states[1], {})
    else:
        states[0].copy(), states[1].copy()
    for module, state in zip((net, other), states, strict=True):
        held = [*module.parameters(), *module.buffers(), module.plain]
        want = [t.detach().clone() for t in held]
        names = [n for n, _ in (*module.named_parameters(), *module.named_buffers())]
        with torch.no_grad():
            run(module)
        left = state.put_back()
        assert left["count"] == (4 if run is _counts else 3)
        for now, tensor, value in zip(
            [*module.parameters(), *module.buffers(), module.plain], held, want, strict=True
        ):
            assert now is tensor
            assert (now.shape, now.dtype) == (value.shape, value.dtype)
            assert torch.equal(now.nan_to_num(7.0), value.nan_to_num(7.0))
        assert names == [n for n, _ in (*module.named_parameters(), *module.named_buffers())]


def test_versions_that_tell_spare_the_reading() -> None:
    net = Projecting()
    state = KeptState(net).copy()
    state.trust_versions()
    before = net.fc.weight.detach().clone()
    with torch.no_grad():
        net.fc.weight.add_(1.0)
        state.put_back()
        assert torch.equal(net.fc.weight, before)
        net.fc.weight.data.add_(1.0)  # this does not tell, so nobody may trust it: `writes_show`
        state.put_back()
    assert not torch.equal(net.fc.weight, before)


@pytest.mark.parametrize(
    ("forward", "shows"),
    [
        (lambda self, x: torch.relu(self.fc(x) * self.scale), True),
        (lambda self, x: self.fc(x) + self.scale.data, False),
        (lambda self, x: F.batch_norm(x, self.scale, self.scale, training=True), False),
        (lambda self, x: twice(self.fc(x)), False),
    ],
)
def test_which_writes_show(forward: Callable[..., Tensor], shows: bool) -> None:
    kind = type("Net", (Projecting,), {"forward": forward})
    assert writes_show(record(kind().eval(), (torch.randn(3, 4),)).graph_module) is shows
    kept = prepare_model(nn.Sequential(Projecting(), nn.ReLU()).eval(), torch.randn(3, 4),
                         modules_to_exclude=["0"])  # fmt: skip
    assert not writes_show(kept)


class Twice(torch.autograd.Function):
    """Anybody's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2.0


twice: Callable[[Tensor], Tensor] = Twice.apply


class Tied(Projecting):
    """Writes while it is recorded, to a weight that has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(4, 4)
        self.again.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.again.weight.data.clamp_(min=0.0)
        return self.again(torch.relu(self.fc(x))) * self.scale  # type: ignore[no-any-return]


def _bits(tensor: Tensor) -> bytes:
    return tensor.numpy(force=True).tobytes()


@pytest.mark.parametrize("name", ["Tied", "Buffers", "CarriedState", "InPlace", "WritesParameters"])
def test_what_recording_calls_equal_is_equal_when_the_proof_begins(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof takes its word: a difference would be written into the user's model."""
    case = Case(Tied, (torch.randn(3, 4),), {}) if name == "Tied" else NETWORKS[name]
    prove = equivalence.prove
    checked: list[str] = []

    def checking(recording: Recording, model: nn.Module, *given: Any, **options: Any) -> Proof:
        gm = recording.graph_module
        there = dict([*model.named_parameters(), *model.named_buffers()])
        for path, tensor in [*gm.named_parameters(), *gm.named_buffers()]:
            known, version = recording.known.get(id(tensor), (None, None))
            if known is tensor and version == tensor._version:
                assert _bits(tensor) == _bits(there[path])
                checked.append(path)
        return prove(recording, model, *given, **options)

    monkeypatch.setattr(equivalence, "prove", checking)
    model = case.network().eval()
    model(*case.args)  # what it writes is there when it is recorded
    prepare_model(model, case.args)
    assert set(checked) >= {n for n, _ in model.named_parameters()}


class Clamping(Projecting):
    """Writes into its weights, which a graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.fc.weight.data.clamp_(min=0.0)
        return torch.relu(self.fc(x))


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("kind", [Clamping, Projecting])
def test_preparing_leaves_parameters_that_forward_writes_to(
    kind: type[Projecting], rows: int
) -> None:
    torch.manual_seed(0)
    net = kind().eval()
    held, want = list(net.parameters()), copy.deepcopy(list(net.parameters()))
    if kind is Clamping:
        prepared = prepare_model(net, torch.randn(rows, 4))
        for name, value in net.fc.state_dict().items():
            assert torch.equal(prepared.state_dict()[f"fc.{name}"], value)
    else:  # refused, after all runs that a proof makes
        with pytest.raises(TraceError, match="FXQ121"):
            prepare_model(net, torch.randn(rows, 4))
    for now, tensor, value in zip(net.parameters(), held, want, strict=True):
        assert now is tensor
        assert torch.equal(now.nan_to_num(7.0), value.nan_to_num(7.0))
