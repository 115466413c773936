"""The file of a model that was trained from the engine's result gives the simulation's labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.ptq import reconstruct
from fxquant.qat import Distiller, OscillationTracker, parameter_groups
from tests.helpers.shipped import Shipped


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 4]."""
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.second(x)) + x
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("bits", [(4, 4), (2, 4), (8, 8)])
def test_every_label_is_that_of_the_simulation(bits: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, data, test = Net().eval(), torch.randn(64, 3, 6, 6), torch.randn(200, 3, 6, 6)
    weight, activation = bits
    scheme = "training_range_learning_with_tf_init"
    sim = QuantizationSimModel(net, data, scheme, activation, weight)
    sim.compute_encodings([data])
    reconstruct(sim, [data])
    before = {n: p.detach().clone() for n, p in sim.model.named_parameters()}
    distiller = Distiller(sim.model, net, temperature=2.0)
    optimizer = torch.optim.Adam(parameter_groups(sim.model, 1e-3, 1e-3))
    tracker = OscillationTracker(sim.model)
    sim.model.train()
    for batch in data.split(16):
        optimizer.zero_grad()
        distiller(batch)[1].backward()
        optimizer.step()
        tracker.step()
    sim.model.eval()
    # the engine froze the encodings of weights; range learning goes on with them all the same
    end = "conv.param_quantizers.weight.max"
    assert not torch.equal(before[end], sim.model.get_parameter(end))
    sim.export(tmp_path, "net", data)
    with torch.no_grad():
        want = sim.model(test).argmax(1)
    for (ran,) in Shipped(tmp_path / "net.onnx").run([test]):
        assert torch.equal(torch.from_numpy(ran).argmax(1), want)
