"""Positions that the outputs do not depend on are not fitted to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.ptq import layer_walk, reconstruct
from fxquant.ptq.dependent_positions import dependent_positions
from fxquant.ptq.layers.layer_search import layers_of
from fxquant.ptq.walking.walk import Environment, FloatEnvironment, Walk


class Sentences(nn.Module):
    """Token ids, 0 for padding; the mean over the tokens that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16)
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        """[N, L] -> [N, 8]."""
        x = self.second(torch.relu(self.first(self.norm(self.table(ids)))))
        there = (ids > 0).to(x.dtype)[..., None]
        return (x * there).sum(1) / there.sum(1)  # type: ignore[no-any-return]


def batches(length: int = 12, real: int = 3) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    found = []
    for _ in range(4):
        ids = torch.randint(1, 50, (16, length), generator=rng)
        ids[:, real:] = 0
        found.append(ids)
    return found


def simulated(data: list[Tensor]) -> tuple[nn.Module, QuantizationSimModel]:
    torch.manual_seed(0)
    net = Sentences().eval()
    with torch.no_grad():
        net.table.weight[0] = torch.linspace(-1, 1, 16) ** 3  # unlike any token
    sim = QuantizationSimModel(net, data[0], "min_max", 8, 3)
    sim.compute_encodings(data)
    return net, sim


def walked(sim: QuantizationSimModel, data: list[Tensor]) -> Walk:
    ways = FloatEnvironment(sim.model, "float"), Environment(sim.model, "simulation")
    return Walk(sim.model, data, ways)


def test_padding_does_not_count() -> None:
    data = batches()
    _, sim = simulated(data)
    layers, _ = layers_of(sim.model)
    enabled = [q.enabled for q in sim.quantizers()]
    found = dependent_positions(walked(sim, data), layers, 0)
    assert {node.name for node, _ in found} == {"first", "second"}
    for (_, batch), positions in found.items():
        assert torch.equal(positions, torch.nonzero(data[batch].reshape(-1))[:, 0])
    assert [q.enabled for q in sim.quantizers()] == enabled


def test_everything_counts_where_inputs_are_floating_point_or_all_are_read() -> None:
    full = batches(real=12)
    _, sim = simulated(full)
    layers, _ = layers_of(sim.model)
    assert dependent_positions(walked(sim, full), layers, 0) == {}
    x = torch.randn(8, 5, 16)
    plain = QuantizationSimModel(nn.Sequential(nn.Linear(16, 8)).eval(), x, "min_max")
    plain.compute_encodings([x])
    layers, _ = layers_of(plain.model)
    assert dependent_positions(walked(plain, [x]), layers, 0) == {}


def test_a_reconstruction_fits_the_tokens_and_not_the_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = batches(length=64)

    @torch.no_grad()
    def reconstructed() -> float:
        net, sim = simulated(data)
        reconstruct(sim, data)
        return float(sum((net(x) - sim.model(x)).square().sum() for x in data))

    found = reconstructed()
    monkeypatch.setattr(layer_walk, "dependent_positions", lambda *_: {})
    assert found < 0.7 * reconstructed()  # without, 61 of 64 positions are padding


def test_everything_counts_behind_an_operator_without_a_derivative() -> None:
    class Gamma(Sentences):
        def forward(self, ids: Tensor) -> Tensor:
            """[N, L] -> [N, 8]."""
            x = super().forward(ids).abs() + 1
            return torch.igamma(x, x + 1)

    data = batches()
    sim = QuantizationSimModel(Gamma().eval(), data[0], "min_max", 8, 3)
    sim.compute_encodings(data)
    layers, _ = layers_of(sim.model)
    assert dependent_positions(walked(sim, data), layers, 0) == {}
    assert [r.path for r in reconstruct(sim, data).layers] == ["table", "first", "second"]
