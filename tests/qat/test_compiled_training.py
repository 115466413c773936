"""A simulation in training is compiled in one piece, once, and trains as it does uncompiled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from fxquant import QuantizationSimModel
from tests.helpers.modules import quantized

# PyTorch's compiler makes one of these itself when it meets an autograd function
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

LEARNED = "training_range_learning_with_tf_init"
LIVE = {"fold_batch_norms": "live"}


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.next, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 4]."""
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc((x + torch.relu(self.next(x))).mean((2, 3)))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(6, 8), nn.Linear(8, 4)
        self.layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout, activation="gelu", batch_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, 6] -> [N, 4]."""
        return self.fc(self.layer(self.embed(x)).mean(1))  # type: ignore[no-any-return]


def simulated(kind: str, scheme: str, config: Any = None) -> tuple[QuantizationSimModel, Tensor]:
    torch.manual_seed(0)
    net, shape = {
        "conv": (ConvNet(), (8, 3, 6, 6)),
        "transformer": (Transformer(), (8, 5, 6)),
        "dropout": (Transformer(0.1), (8, 5, 6)),
    }[kind]
    x = torch.randn(*shape)
    sim = QuantizationSimModel(net.eval(), x, scheme, config=config)
    sim.compute_encodings([x])
    return sim, x


def train(sim: QuantizationSimModel, run: Any, x: Tensor, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(sim.model.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(run(x), torch.arange(8) % 4).backward()
        optimizer.step()


def difference(a: QuantizationSimModel, b: QuantizationSimModel) -> float:
    """Largest difference of any weight, range or statistic, relative to its tensor's magnitude."""
    one, two = a.model.state_dict(), b.model.state_dict()
    return max(
        float((one[k].double() - two[k].double()).abs().max() / one[k].abs().max().clamp(min=1e-3))
        for k in one
    )


@pytest.mark.parametrize(
    ("scheme", "config"), [("min_max", None), ("tf_enhanced", LIVE), (LEARNED, None)]
)
def test_compiled_training_is_training(scheme: str, config: Any) -> None:
    sim, x = simulated("conv", scheme, config)
    twin = copy.deepcopy(sim)
    torch._dynamo.reset()
    counted = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(twin.model, backend=counted, fullgraph=True)
    sim.model.train()
    twin.model.train()
    before = sim.model.state_dict()["conv.param_quantizers.weight.max"].clone()
    train(sim, sim.model, x)
    train(twin, compiled, x)
    assert counted.frame_count == 1  # ranges that move are no reason to compile again
    assert not torch.equal(before, twin.model.state_dict()["conv.param_quantizers.weight.max"])
    # sums in another order; one rounding to another step of 255 would be seen
    assert difference(sim, twin) < 1e-4
    sim.model.eval()
    twin.model.eval()
    with torch.no_grad():
        wanted, found = sim.model(x), compiled(x)
    # the output is float: one step of a grid over all of it
    assert float((wanted - found).abs().max()) <= float(wanted.abs().max()) / 255


@pytest.mark.parametrize(
    ("kind", "scheme", "config"),
    [
        ("conv", "min_max", None),
        ("conv", LEARNED, LIVE),
        ("dropout", "min_max", None),
        ("dropout", LEARNED, None),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_no_graph_breaks(kind: str, scheme: str, config: Any, training: bool) -> None:
    sim, x = simulated(kind, scheme, config)
    sim.model.train(training)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(sim.model)(x)
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1


def test_a_compiled_transformer_trains_alike() -> None:
    sim, x = simulated("transformer", LEARNED)
    twin = copy.deepcopy(sim)
    torch._dynamo.reset()
    train(sim, sim.model, x, 1)
    train(twin, torch.compile(twin.model, backend="aot_eager", fullgraph=True), x, 1)
    assert difference(sim, twin) < 1e-4


def test_compiled_and_uncompiled_steps_follow_by_turns() -> None:
    sim, x = simulated("conv", "tf_enhanced")
    twin = copy.deepcopy(sim)
    torch._dynamo.reset()
    compiled = torch.compile(twin.model, backend="aot_eager", fullgraph=True)
    train(sim, sim.model, x, 4)
    for run in (compiled, twin.model, compiled, twin.model):
        train(twin, run, x, 1)
    assert difference(sim, twin) < 1e-4


def test_frozen_ranges_are_not_followed_by_compiled_steps() -> None:
    sim, x = simulated("conv", "min_max")
    q = quantized(sim, "fc").param_quantizers["weight"]
    q.allow_overwrite(False)
    before = q.max.detach().clone()
    torch._dynamo.reset()
    train(sim, torch.compile(sim.model, backend="aot_eager", fullgraph=True), x)
    assert torch.equal(before, q.max)


def test_a_trained_simulation_is_exported() -> None:
    sim, x = simulated("conv", "min_max")
    train(sim, sim.model, x)
    sim.model.eval()
    with torch.no_grad():
        wanted = sim.model(x).as_subclass(Tensor)
        found = torch.export.export(sim.model, (x,)).module()(x)
    # the output is float: one step of a grid over all of it
    assert float((wanted - found).abs().max()) <= float(wanted.abs().max()) / 255
