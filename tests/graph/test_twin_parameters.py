"""What a run writes to parameters is put back from the other module's, whatever the order."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fxquant import prepare_model
from fxquant.errors import TraceError
from fxquant.graph.twin_parameters import parameters_kept


class Projecting(nn.Module):
    """Keeps its weights above zero, as networks with monotonic outputs do: a run more is none."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor([float("nan"), -1.0, 1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.fc.weight.data.clamp_(min=0.0)
            self.scale.data = self.scale.data.clamp(min=0.0)
        return torch.nan_to_num(self.fc(x) * self.scale)


def test_parameters_come_back_after_runs_in_any_order() -> None:
    net = Projecting()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.fc.bias = nn.Parameter(torch.ones(5))  # of another shape: it has no twin
    want = [[p.clone() for p in m.parameters()] for m in (net, other)]
    held = [list(m.parameters()) for m in (net, other)]
    with parameters_kept(net, other) as twins:
        for module in (net, net, other, net, other, other):
            twins.running(module)
            before = list(module.parameters())
            assert all(map(torch.equal, before[1:], want[module is other][1:]))
            with torch.no_grad():
                module.fc.weight.data.clamp_(min=0.0)
                module.fc.bias = nn.Parameter(module.fc.bias + 1.0)
            twins.running(module)
            assert not torch.equal(module.fc.bias, before[-1])  # runs of one see each other's
            twins.settle()
    for module, values, tensors in zip((net, other), want, held, strict=True):
        for now, value, tensor in zip(module.parameters(), values, tensors, strict=True):
            assert now is tensor
            assert torch.equal(now.nan_to_num(7.0), value.nan_to_num(7.0))


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
