"""Training under the schemes that do not learn ranges: activations stay, weights are followed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fxquant import QuantizationSimModel, load_checkpoint, save_checkpoint
from tests.helpers.modules import quantized
from tests.helpers.shipped import Shipped

SCHEMES = ["min_max", "tf_enhanced", "percentile", "mse"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.act, self.fc = nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 4]."""
        return self.fc(self.act(self.norm(self.conv(x))).mean((2, 3)))  # type: ignore[no-any-return]


def simulated(scheme: str = "min_max") -> tuple[QuantizationSimModel, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 6, 6)
    sim = QuantizationSimModel(Net().eval(), x, scheme)
    sim.compute_encodings([x])
    return sim, x


def activations(sim: QuantizationSimModel) -> dict[str, Tensor]:
    found = {}
    for name, q in sim.named_quantizers():
        if "param_quantizers" not in name:
            largest = q.get_max()
            assert largest is not None
            found[name] = largest.clone()
    return found


def peak(sim: QuantizationSimModel, path: str) -> tuple[Tensor, Tensor]:
    """Largest magnitude of the weight, and that of its range, per channel."""
    module = quantized(sim, path)
    encoding = module.param_quantizers["weight"].get_encodings()
    weight = module.get_parameter("weight").detach().flatten(1).abs().amax(1)
    return weight, -encoding.min.flatten()


def steps(sim: QuantizationSimModel, x: Tensor, count: int = 5) -> None:
    optimizer = torch.optim.SGD(sim.model.parameters(), 0.2)
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(sim.model(x), torch.arange(8) % 4).backward()
        optimizer.step()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_activations_stay_and_weights_are_followed(scheme: str) -> None:
    sim, x = simulated(scheme)
    before = activations(sim)
    first = {path: torch.div(*reversed(peak(sim, path))) for path in ("conv", "fc")}
    steps(sim, x)
    after = activations(sim)
    assert before
    assert all(torch.equal(before[k], after[k]) for k in before)
    sim.model.eval()
    for path, share in first.items():
        weight, covered = peak(sim, path)
        # the proportion has twelve bits; a symmetric grid has one step more below zero than above
        torch.testing.assert_close(covered / weight, share, rtol=1 / 120, atol=0)


def test_evaluation_between_gradient_and_step_sees_the_step() -> None:
    sim, x = simulated()
    sim.model.train()
    optimizer = torch.optim.SGD(sim.model.parameters(), 1.0)
    sim.model(x).square().sum().backward()
    with torch.no_grad():
        sim.model(x)  # keeps its quantized weights
    optimizer.step()
    with torch.no_grad():
        sim.model(x)
    weight, covered = peak(sim, "fc")
    torch.testing.assert_close(covered, weight, rtol=1 / 120, atol=0)


@pytest.mark.parametrize("how", ["state_dict", "checkpoint", "copy", "eval", "export"])
def test_ranges_are_up_to_date_wherever_they_leave(how: str, tmp_path: Path) -> None:
    sim, x = simulated()
    steps(sim, x)  # the last thing is a step of the optimizer
    other = sim
    if how == "state_dict":
        other, _ = simulated()
        other.model.load_state_dict(sim.model.state_dict())
    elif how == "checkpoint":
        save_checkpoint(sim, tmp_path / "saved")
        other, _ = simulated()
        load_checkpoint(other, tmp_path / "saved")
    elif how == "copy":
        other = copy.deepcopy(sim)
        other.model(x)
    elif how == "eval":
        sim.model.eval()
    else:
        sim.export(tmp_path, "net", x)
        with torch.no_grad():
            want = sim.model(x)
        for (ran,) in Shipped(tmp_path / "net.onnx").run([x]):
            assert bool((torch.from_numpy(ran).argmax(1) == want.argmax(1)).all())
    weight, covered = peak(other, "fc")
    torch.testing.assert_close(covered, weight, rtol=1 / 120, atol=0)


def test_frozen_encodings_are_not_followed() -> None:
    sim, x = simulated()
    q = quantized(sim, "fc").param_quantizers["weight"]
    q.allow_overwrite(False)
    before = q.get_max().clone()
    steps(sim, x)
    sim.model(x)
    assert torch.equal(q.get_max(), before)


def test_nothing_moves_without_training() -> None:
    sim, x = simulated("tf_enhanced")
    before = {n: p.detach().clone() for n, p in sim.named_quantizer_parameters()}
    sim.model.train()
    for _ in range(3):
        sim.model(x).sum().backward()
    sim.model.eval()
    sim.model(x)
    assert all(torch.equal(before[n], p) for n, p in sim.named_quantizer_parameters())


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    sim, x = simulated()
    steps(sim, x, 2)
    twin = copy.deepcopy(sim)
    sim.model.zero_grad()
    sim.model(x).square().sum().backward()
    checkpoint(twin.model, x, use_reentrant=False).square().sum().backward()
    for a, b in zip(sim.model.parameters(), twin.model.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def test_training_goes_on_from_a_checkpoint_with_the_same_bits(tmp_path: Path) -> None:
    sim, x = simulated("tf_enhanced")
    steps(sim, x, 3)
    save_checkpoint(sim, tmp_path / "saved")
    resumed, _ = simulated("tf_enhanced")
    load_checkpoint(resumed, tmp_path / "saved")
    steps(sim, x, 3)
    steps(resumed, x, 3)
    one, two = sim.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
