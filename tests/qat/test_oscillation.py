"""Oscillating weights: the penalty and algorithm 1 against written-out references."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.errors import TrainingError
from fxquant.nn import QuantizationMixin
from fxquant.nn.calibration import weight_of
from fxquant.qat import OscillationTracker, dampening_loss
from tests.helpers.modules import quantized

LEARNED = "training_range_learning_with_tf_init"
X = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))

NORM = torch.tensor([0.5, 2.0, -1.0, 1.5])  # sigma is 1


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        with torch.no_grad():
            self.norm.weight.copy_(NORM)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 3]."""
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))  # type: ignore[no-any-return]


def simulated(scheme: str = LEARNED, bits: int = 3, **config: Any) -> QuantizationSimModel:
    torch.manual_seed(0)
    sim = QuantizationSimModel(Net().eval(), X, scheme, 8, bits, config=config)
    sim.compute_encodings([X])
    return sim


def integers(module: QuantizationMixin) -> Tensor:
    value = weight_of(module, "weight")
    assert value is not None
    return module.param_quantizers["weight"].get_encodings().quantize(value.detach())  # type: ignore[no-any-return]


@pytest.mark.parametrize("config", [{}, {"per_channel": False}])
def test_the_penalty_and_its_gradient_are_equation_5(config: dict[str, Any]) -> None:
    sim = simulated(**config)
    with torch.no_grad():
        fc = quantized(sim, "fc")
        fc.get_parameter("weight")[0, 0] *= 3.0  # beyond the grid: clipped
    loss = dampening_loss(sim.model)
    loss.backward()
    want = 0.0
    for path in ("conv", "fc"):
        module = quantized(sim, path)
        weight = module.get_parameter("weight")
        encoding = module.param_quantizers["weight"].get_encodings()
        ends = [e.reshape(-1, *[1] * (weight.dim() - 1)) for e in (encoding.min, encoding.max)]
        w = weight.detach()
        rounded = encoding.dequantize(encoding.quantize(w))
        difference = w.clamp(*ends) - rounded
        want += float(difference.square().sum())
        assert weight.grad is not None
        inside = (w > ends[0]) & (w < ends[1])
        torch.testing.assert_close(
            weight.grad, torch.where(inside, 2 * difference, 0.0), rtol=1e-4, atol=1e-6
        )
        for end in module.param_quantizers["weight"].parameters():
            assert end.grad is None
    # float32 sums
    assert float(loss.detach()) == pytest.approx(want, rel=1e-5)


def test_the_penalty_pulls_weights_to_their_middles() -> None:
    sim = simulated()
    before = {p: integers(quantized(sim, p)) for p in ("conv", "fc")}
    first = dampening_loss(sim.model).item()
    parameters = [quantized(sim, p).get_parameter("weight") for p in before]
    optimizer = torch.optim.SGD(parameters, 0.4)
    for _ in range(5):
        optimizer.zero_grad()
        dampening_loss(sim.model).backward()
        optimizer.step()
    # each step leaves a fifth of the difference: 2 * 0.4 of it is taken away
    assert dampening_loss(sim.model).item() < 1e-4 * first
    assert all(torch.equal(before[p], integers(quantized(sim, p))) for p in before)


class Reference:
    """Algorithm 1 for one weight, in Python numbers."""

    def __init__(self, start: int, m: float, threshold: float) -> None:
        self.m, self.threshold = m, threshold
        self.integer, self.sign, self.f, self.average = start, 0, 0.0, float(start)
        self.frozen = False

    def step(self, integer: int) -> None:
        if self.frozen:
            integer = self.integer
        delta = integer - self.integer
        turned = delta != 0 and self.sign != 0 and (delta > 0) != (self.sign > 0)
        self.f = self.m * turned + (1 - self.m) * self.f
        self.average = self.m * integer + (1 - self.m) * self.average
        if delta:
            self.sign = 1 if delta > 0 else -1
        if not self.frozen and self.f > self.threshold:
            self.frozen, integer = True, round(self.average)
        self.integer = integer


@pytest.mark.parametrize("live", [False, True])
def test_freezing_is_algorithm_1(live: bool) -> None:
    sim = simulated("min_max", 4, **({"fold_batch_norms": "live"} if live else {}))
    for path in ("conv", "fc"):
        quantized(sim, path).param_quantizers["weight"].allow_overwrite(False)
    tracker = OscillationTracker(sim.model, momentum=0.2, threshold=0.4)
    module = quantized(sim, "conv")
    weight = module.get_parameter("weight")
    references = [Reference(int(i), 0.2, 0.4) for i in integers(module).flatten()]
    generator = torch.Generator().manual_seed(0)
    for count in range(30):
        value = weight_of(module, "weight")
        assert value is not None
        step = module.param_quantizers["weight"].get_scale().clone()
        moved = torch.randn(value.shape, generator=generator) * step * 0.8
        with torch.no_grad():  # what is folded in multiplies what is added
            weight.add_(moved / NORM.reshape(4, 1, 1, 1) if live else moved)
        for reference, integer in zip(references, integers(module).flatten(), strict=True):
            reference.step(int(integer))
        tracker.step()
        frozen = torch.tensor([r.frozen for r in references]).reshape(weight.shape)
        want = torch.tensor([r.integer for r in references]).reshape(weight.shape)
        found = integers(module)
        assert torch.equal(found[frozen].int(), want[frozen].int()), count
        frequency = torch.tensor([r.f for r in references]).reshape(weight.shape)
        # float32 averages against Python's
        torch.testing.assert_close(
            tracker.frequencies()["conv.weight"], frequency, rtol=1e-4, atol=1e-6
        )
    assert 0.1 < float(frozen.float().mean()) < 1.0
    assert 0.0 < tracker.frozen() < 1.0


@pytest.mark.parametrize("scheme", [LEARNED, "min_max"])
def test_frozen_weights_keep_their_integers_while_ranges_move(scheme: str) -> None:
    sim = simulated(scheme)
    tracker = OscillationTracker(sim.model, momentum=0.3, threshold=0.3)
    optimizer = torch.optim.Adam(sim.model.parameters(), 2e-2)
    generator = torch.Generator().manual_seed(1)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for _ in range(40):
        optimizer.zero_grad()
        target = torch.randint(0, 3, (16,), generator=generator)  # nothing to learn: they turn
        nn.functional.cross_entropy(sim.model(X), target).backward()
        optimizer.step()
        tracker.step()
        for path, (frozen, kept) in seen.items():
            assert torch.equal(integers(quantized(sim, path))[frozen], kept[frozen])
        for path in ("conv", "fc"):
            frozen = tracker.state_dict()[f"{path}.weight.frozen"].clone()
            seen[path] = frozen, integers(quantized(sim, path)).clone()
    assert tracker.frozen() > 0.02
    sim.model.eval()
    for path, (frozen, kept) in seen.items():
        assert torch.equal(integers(quantized(sim, path))[frozen], kept[frozen])


def test_without_a_threshold_it_only_counts() -> None:
    sim = simulated()
    tracker = OscillationTracker(sim.model, momentum=0.5, threshold=None)
    weight = quantized(sim, "fc").get_parameter("weight")
    start, step = (
        weight.detach().clone(),
        quantized(sim, "fc").param_quantizers["weight"].get_scale(),
    )
    for i in range(8):
        with torch.no_grad():
            weight.copy_(start + (step if i % 2 else -step))
        moved = weight.detach().clone()
        tracker.step()
        assert torch.equal(weight, moved)
    assert tracker.frozen() == 0.0
    share = weight.numel() / 120  # of the weights
    assert tracker.oscillating() == pytest.approx(share)
    tracker.threshold = 0.1
    tracker.step()
    assert tracker.frozen() == pytest.approx(share)
    assert tracker.oscillating() == 0.0


def test_tracking_goes_on_from_a_state() -> None:
    runs = []
    for stop in (False, True):
        sim = simulated()
        tracker = OscillationTracker(sim.model, momentum=0.3, threshold=0.3)
        generator = torch.Generator().manual_seed(1)
        for i in range(20):
            if stop and i == 9:
                state = copy.deepcopy(tracker.state_dict())
                tracker = OscillationTracker(sim.model, momentum=0.3, threshold=0.3)
                tracker.load_state_dict(state)
            for path in ("conv", "fc"):
                weight = quantized(sim, path).get_parameter("weight")
                with torch.no_grad():
                    weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
            tracker.step()
        runs.append((tracker.state_dict(), sim.model.state_dict()))
    for a, b in zip(*runs, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)
    state = runs[0][0]
    with pytest.raises(TrainingError, match=r"FXQ833(.|\n)*other weights"):
        tracker.load_state_dict({k: v for k, v in state.items() if "fc" not in k})


def test_what_cannot_be_tracked() -> None:
    sim = simulated()
    for momentum, threshold in ((0.0, 0.1), (1.0, 0.1), (math.nan, 0.1), (0.1, -1.0), ("x", 0.1)):
        with pytest.raises(TrainingError, match="FXQ833"):
            OscillationTracker(sim.model, momentum, threshold)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="FXQ833"):
        OscillationTracker(Net())
    sim.model.requires_grad_(requires_grad=False)
    with pytest.raises(TrainingError, match="FXQ833"):
        dampening_loss(sim.model)
