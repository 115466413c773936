"""`QatProcessor`: the documented run on networks that nobody edited."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.errors import CheckpointError, ConfigError
from fxquant.nn.live_norm import LiveNorm
from fxquant.vitis import QatProcessor, TrainableModel

X = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Sums, an activation that is called twice, an interpolation: none of it is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.act, self.fc = nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 10)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 10]."""
        x = self.act(self.norm(self.a(x)))
        x = self.act(self.b(x)) + x
        return self.fc(self.drop(F.interpolate(x, scale_factor=0.5).mean((2, 3))))  # type: ignore[no-any-return]


def processor(**options: Any) -> QatProcessor:
    torch.manual_seed(0)
    return QatProcessor(Net(), (X,), **options)


def train(model: TrainableModel, steps: int = 4) -> None:
    groups = [
        {"params": model.non_quantizer_parameters(), "lr": 1e-3},
        {"params": model.quantizer_parameters(), "lr": 1e-3},
    ]
    optimizer = torch.optim.Adam(groups)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), torch.arange(16) % 10).backward()
        optimizer.step()


@pytest.mark.parametrize("target", ["onnxruntime_x86", "generic_pof2"])
def test_the_documented_run(target: str, tmp_path: Path) -> None:
    p = processor(bitwidth=8, target=target)
    model = p.trainable_model()
    assert model.training
    before = [q.detach().clone() for q in model.quantizer_parameters()]
    train(model)
    after = model.quantizer_parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    deployed = p.to_deployable(model, tmp_path)
    model.eval()
    assert torch.equal(deployed(X), model(X))
    assert p.export_onnx_model(tmp_path)
    assert (tmp_path / "Net_int.onnx").exists()
    assert (tmp_path / "quant_info.json").exists()
    later = processor(bitwidth=8, target=target).deployable_model(tmp_path)
    assert torch.equal(later(X), deployed(X))


def test_the_users_network_stays_as_it_is() -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    model = QatProcessor(net, (X,)).trainable_model()
    train(model, 2)
    assert net.training
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_switches() -> None:
    p = processor()
    model = p.trainable_model().eval()
    on = model(X)
    model.disable_quant()
    off = model(X)
    assert not torch.equal(on, off)
    model.enable_quant()
    assert torch.equal(model(X), on)
    model.enable_warmup()
    assert torch.equal(model(X * 2), model(X * 2))
    model.disable_warmup()
    assert not torch.equal(model(X), on)  # ranges of what the warm-up has shown
    model.freeze_quant()
    assert model.quantizer_parameters() == []


def test_frozen_statistics_and_folded_norms() -> None:
    model = processor().trainable_model()
    live = [m for m in model.modules() if isinstance(m, LiveNorm)]
    assert len(live) == 1
    model.freeze_bn_stats()
    before = copy.deepcopy(live[0].norm.running_mean)
    train(model, 2)
    assert torch.equal(before, live[0].norm.running_mean)  # type: ignore[arg-type]
    model.eval()
    want = model(X)
    model.fuse_conv_bn()
    assert torch.equal(model(X), want)
    assert not any(isinstance(m, LiveNorm) for m in model.modules())


def test_modules_are_found_under_their_own_names() -> None:
    model = processor().trainable_model()
    assert isinstance(model.fc, nn.Linear)
    assert len(list(model.parameters())) == len(list(model.model.parameters()))
    twin = copy.deepcopy(model).eval()
    assert torch.equal(twin(X), model.eval()(X))
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.nothing


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FXQ803"):
        QatProcessor("net", (X,))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="FXQ803"):
        processor(mix_bit=True)
    with pytest.raises(ConfigError, match="FXQ283"):
        QatProcessor(Net(), None)
    p = processor()
    with pytest.raises(ConfigError, match="FXQ804"):
        p.export_onnx_model(tmp_path)
    with pytest.raises(ConfigError, match="FXQ804"):
        p.to_deployable(Net(), tmp_path)
    with pytest.raises(ConfigError, match="FXQ803"):
        p.deployable_model(tmp_path, used_for_xmodel=True)
    with pytest.raises(CheckpointError, match="FXQ602"):
        p.deployable_model(tmp_path)
