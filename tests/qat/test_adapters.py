"""Adapters train within the rounding of frozen weights, and merging them changes no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, qat
from fxquant.errors import TrainingError

SCHEMES = ["min_max", "training_range_learning_with_tf_init"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2), nn.Flatten(),
        nn.Linear(100, 6),
    ).eval()  # fmt: skip


def simulated(scheme: str = "min_max") -> tuple[QuantizationSimModel, Tensor]:
    net, x = network(), torch.randn(8, 4, 6, 6)
    sim = QuantizationSimModel(net, x, scheme, 8, 4)
    sim.compute_encodings([x])
    return sim, x


def outputs(sim: QuantizationSimModel, x: Tensor) -> Tensor:
    with torch.no_grad():
        return sim.model.eval()(x).as_subclass(Tensor)  # type: ignore[no-any-return]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_adapters_train_and_are_merged(scheme: str, tmp_path: Any) -> None:
    sim, x = simulated(scheme)
    before = outputs(sim, x)
    named = sim.model.named_parameters()
    weights = {n: p.detach().clone() for n, p in named if n.endswith((".weight", ".bias"))}
    assert qat.add_adapters(sim, rank=2, alpha=4.0) == ["0", "2", "4"]
    assert torch.equal(outputs(sim, x), before)

    target = torch.randn(8, 6)
    optimizer = torch.optim.Adam(qat.parameter_groups(sim.model, 1e-2, 1e-3))
    sim.model.train()
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (sim.model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    parameters = dict(sim.model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in weights.items())

    with pytest.raises(TrainingError, match="FXQ802"):
        sim.export(tmp_path, "net", x)
    trained = outputs(sim, x)
    with qat.quantization_off(sim.model):
        floating = outputs(sim, x)
    for part in (sim, sim.model.get_submodule("0")):
        with pytest.raises(TrainingError, match=r"FXQ802.*adapter"):
            part.fold_param_quantizers()  # type: ignore[operator]
    assert torch.equal(sim.get_original_model()(x), floating)
    qat.merge_adapters(sim)
    assert torch.equal(outputs(sim, x), trained)
    assert not torch.equal(trained, before)
    with qat.quantization_off(sim.model):
        assert torch.equal(outputs(sim, x), floating)
    assert not [name for name in sim.model.state_dict() if "low_rank" in name]


def test_what_has_no_adapter_is_refused() -> None:
    sim, _ = simulated()
    for rank, alpha in ((0, None), (True, None), (2.0, None), (2, -1.0)):
        with pytest.raises(TrainingError, match="FXQ834"):
            qat.add_adapters(sim, rank, alpha=alpha)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="no layer"):
        qat.add_adapters(sim, layers=["1"])
    assert qat.add_adapters(sim, layers=[nn.Linear]) == ["4"]
    with pytest.raises(TrainingError, match="4 has an adapter already"):
        qat.add_adapters(sim)
