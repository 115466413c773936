"""Batch norms that are folded with every call: as in floating point, and then as one layer."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.errors import TrainingError
from fxquant.nn.live_norm import LiveNorm, live_norm_of
from fxquant.prepare import prepare_model
from fxquant.ptq import reconstruct
from fxquant.qat import (
    enable_quantizers,
    fold_live_norms,
    freeze_batch_norms,
    freeze_ranges,
    quantization_off,
)
from tests.helpers.modules import quantized

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.ConvTranspose2d(8, 6, 3, groups=2), nn.BatchNorm2d(6, momentum=None)
        self.c3, self.b3 = nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6, affine=False)
        self.fc, self.b4 = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        x = torch.relu(self.b1(self.c1(x)))
        x = torch.relu(self.b2(self.c2(x)))
        x = torch.relu(self.b3(self.c3(x)))
        return self.b4(self.fc(x.mean((2, 3))))  # type: ignore[no-any-return]


def settled() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for _ in range(60):
            net(X)
    return net


def simulated(net: nn.Module) -> QuantizationSimModel:
    sim = QuantizationSimModel(
        copy.deepcopy(net).eval(), X, "min_max", config={"fold_batch_norms": "live"}
    )
    sim.compute_encodings([X])
    return sim


def norms(sim: QuantizationSimModel) -> list[LiveNorm]:
    return [m for m in sim.model.modules() if isinstance(m, LiveNorm)]


def means(sim: QuantizationSimModel) -> list[Tensor]:
    found = [m.norm.running_mean for m in norms(sim)]
    return [mean.clone() for mean in found if mean is not None]


@pytest.mark.parametrize("training", [True, False])
def test_without_rounding_it_is_the_float_network(*, training: bool) -> None:
    net = settled()
    sim = simulated(net)
    net.train(training)
    sim.model.train(training)
    with quantization_off(sim.model):
        got = sim.model(X)
    torch.testing.assert_close(got, net(X), rtol=1e-3, atol=1e-4)  # divided and multiplied again
    mine = [m.norm for m in norms(sim)]
    own = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(mine) == len(own) == 4
    for a, b in zip(mine, own, strict=True):
        torch.testing.assert_close(a.running_mean, b.running_mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(a.running_var, b.running_var, rtol=1e-3, atol=1e-4)


def test_gradients_are_those_of_the_float_network() -> None:
    net = settled().train()
    sim = simulated(net)
    sim.model.train()
    weight = torch.randn(16, 5)
    (net(X) * weight).sum().backward()
    with quantization_off(sim.model):
        (sim.model(X) * weight).sum().backward()
    for path in ("c1", "c2", "c3", "fc"):
        want = net.get_submodule(path).get_parameter("weight").grad
        got = quantized(sim, path).get_parameter("weight").grad
        assert want is not None
        assert got is not None
        # float32 sums in another order, of gradients that cancel through the norm
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-3 * float(want.abs().max()))


def test_the_folded_network_computes_the_same_bits(tmp_path: Path) -> None:
    sim = simulated(settled())
    sim.model.train()
    optimizer = torch.optim.SGD(sim.model.parameters(), 0.02)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(sim.model(X), torch.arange(16) % 5).backward()
        optimizer.step()
    sim.model.eval()
    with torch.no_grad():
        want = sim.model(X)
        fold_live_norms(sim)
        assert torch.equal(sim.model(X), want)
    assert norms(sim) == []
    assert sim.export(tmp_path, "net", X)


def test_a_layer_without_quantizers_has_its_norm_folded_in() -> None:
    sim = simulated(settled())
    sim.model.train()
    sim.model(X)
    sim.model.eval()
    with torch.no_grad(), quantization_off(sim.model):
        want = sim.model(X)
        assert torch.equal(sim.get_original_model()(X), want)
        count = len(norms(sim))
        sim.exclude_layers_from_quantization(["c1"])
        assert len(norms(sim)) == count - 1
        assert torch.equal(sim.model(X), want)


def test_modes_change_no_momentum_and_no_eps() -> None:
    sim = simulated(settled())
    before = [(m.norm.momentum, m.norm.eps) for m in norms(sim)]
    for i in range(7):
        sim.model.train(i % 2 == 0)
    assert [(m.norm.momentum, m.norm.eps) for m in norms(sim)] == before


def test_frozen_statistics_stay_through_training_mode() -> None:
    sim = simulated(settled())
    freeze_batch_norms(sim.model)
    sim.model.train()
    before = means(sim)
    y = sim.model(X)
    assert all(torch.equal(a, b) for a, b in zip(before, means(sim), strict=True))
    sim.model.eval()
    assert torch.equal(sim.model(X), y)
    freeze_batch_norms(sim.model, frozen=False)
    sim.model.train()
    sim.model(X)
    assert not any(torch.equal(a, b) for a, b in zip(before, means(sim), strict=True))


def test_a_channel_whose_gamma_is_zero() -> None:
    net = settled()
    with torch.no_grad():
        net.b1.weight[2] = 0.0
    sim = simulated(net)
    sim.model.train()
    y = sim.model(X)
    y.sum().backward()
    assert bool(y.isfinite().all())
    gradient = quantized(sim, "c1").get_parameter("weight").grad
    assert gradient is not None
    assert bool(gradient.isfinite().all())


def test_what_is_in_the_middle_of_training_is_not_deployed(tmp_path: Path) -> None:
    sim = simulated(settled())
    with pytest.raises(TrainingError, match=r"FXQ802(.|\n)*fold_live_norms"):
        sim.export(tmp_path, "net", X)
    with pytest.raises(TrainingError, match="FXQ802"):
        reconstruct(sim, [X])
    fold_live_norms(sim)
    enable_quantizers(sim.model.get_submodule("c1"), enabled=False)
    with pytest.raises(TrainingError, match=r"FXQ802(.|\n)*enable_quantizers"):
        sim.export(tmp_path, "net", X)
    assert list(tmp_path.iterdir()) == []


def test_frozen_ranges_neither_learn_nor_follow() -> None:
    sim = QuantizationSimModel(settled().eval(), X, "training_range_learning_with_tf_init")
    sim.compute_encodings([X])
    freeze_ranges(sim.model)
    before = {n: p.detach().clone() for n, p in sim.named_quantizer_parameters()}
    optimizer = torch.optim.SGD(sim.model.parameters(), 0.1)
    sim.model(X).square().sum().backward()
    optimizer.step()
    sim.model(X)
    assert all(torch.equal(before[n], p) for n, p in sim.named_quantizer_parameters())


def test_a_prepared_model_keeps_its_batch_norms() -> None:
    prepared = prepare_model(settled().eval(), X)
    QuantizationSimModel(prepared, X, config={"fold_batch_norms": "live"})
    assert isinstance(prepared.get_submodule("b1"), nn.BatchNorm2d)
    assert live_norm_of(prepared.get_submodule("c1")) is None
