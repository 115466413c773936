"""Distillation: the formula, features at module paths, and a teacher that stays as it is."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.errors import TrainingError
from fxquant.qat import Distiller, distillation_loss, feature_loss

X = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 4]."""
        return self.fc(self.drop(self.block(x).mean((2, 3))))  # type: ignore[no-any-return]


class Named(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[N, 3, H, W] -> logits by name."""
        return {"logits": self.net(x)}


def simulated(activations: int = 3, weights: int = 3) -> tuple[QuantizationSimModel, Net]:
    torch.manual_seed(0)
    net = Net().eval()
    sim = QuantizationSimModel(net, X, "min_max", activations, weights)
    sim.compute_encodings([X])
    return sim, net


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_written_out_divergence(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    want = 0.0
    for s, t in zip(student.reshape(-1, 7).tolist(), teacher.reshape(-1, 7).tolist(), strict=True):
        p, q = ([math.exp(v / temperature) for v in row] for row in (t, s))
        p, q = ([v / sum(row) for v in row] for row in (p, q))
        want += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 10
    found = distillation_loss(student, teacher, temperature)
    # float32 sums of 70 terms against float64
    torch.testing.assert_close(float(found), want * temperature**2, rtol=1e-4, atol=0)
    turned = distillation_loss(student.mT, teacher.mT, temperature, dim=1)
    torch.testing.assert_close(turned, found, rtol=1e-5, atol=0)


def test_high_temperature_compares_the_logits_themselves() -> None:
    """Hinton et al., equation 4: the gradient is that of half the mean squared difference / C."""
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5, dtype=torch.double), torch.randn(6, 5, dtype=torch.double)
    student, teacher = student - student.mean(1, True), teacher - teacher.mean(1, True)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, 300.0), student)
    want = (student - teacher).detach() / 5 / 6
    # the next term of the series is smaller by the temperature
    torch.testing.assert_close(gradient, want, rtol=0.05, atol=1e-3)


def test_the_relative_difference_of_features() -> None:
    teacher = torch.tensor([3.0, 4.0])
    assert float(feature_loss(teacher * 1.1, teacher)) == pytest.approx(0.01, rel=1e-4)
    assert float(feature_loss(torch.zeros(2), torch.zeros(2))) == 0.0


def test_training_with_a_teacher_comes_nearer_to_it() -> None:
    sim, net = simulated(8, 8)
    with torch.no_grad():
        for path in ("block.0", "fc"):
            weight = sim.model.get_submodule(path).get_parameter("weight")
            weight.add_(torch.randn(weight.shape) * 0.3 * weight.std())
    distiller = Distiller(sim.model, net, {"block.2": 0.5}, temperature=2.0)
    before = [p.detach().clone() for p in net.state_dict().values()]
    optimizer = torch.optim.Adam(sim.model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        output, loss = distiller(X)
        assert output.shape == (16, 4)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-5:]) < 0.1 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))
    assert all(p.grad is None for p in net.parameters())


def test_the_teacher_evaluates_and_its_modes_come_back() -> None:
    sim, net = simulated(8, 8)
    net.train()
    count = net.block[1].num_batches_tracked.clone()  # type: ignore[operator]
    first, second = (Distiller(sim.model.eval(), net)(X)[1].item() for _ in range(2))
    assert first == second  # no dropout, no statistics of the batch
    assert torch.equal(count, net.block[1].num_batches_tracked)  # type: ignore[arg-type]
    assert net.training
    assert net.drop.training


def test_the_sum_of_its_parts_and_no_hook_is_left() -> None:
    sim, net = simulated()
    sim.model.eval()
    seen: dict[str, Tensor] = {}
    handle = sim.model.get_submodule("block.2").register_forward_hook(
        lambda m, args, y: seen.update(relu=y.as_subclass(Tensor))
    )
    with torch.no_grad():
        logits = sim.model(X).as_subclass(Tensor)
        handle.remove()
        found = Distiller(sim.model, net, {"block.2": 0.5, "fc": 2.0}, temperature=3.0)(X)[1]
        want = distillation_loss(logits, net(X), 3.0) + 2 * feature_loss(logits, net(X))
        want = want + 0.5 * feature_loss(seen["relu"], net.block(X))
    # sums in another order
    torch.testing.assert_close(found, want, rtol=1e-5, atol=0)
    for model in (sim.model, net):
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_hooks_leave_when_a_model_fails() -> None:
    sim, net = simulated()
    with pytest.raises(RuntimeError):
        Distiller(sim.model, net, ["fc"])(X[:, :2])
    assert all(not m._forward_hooks for m in [*net.modules(), *sim.model.modules()])


def test_wrapped_students_and_named_outputs() -> None:
    sim, net = simulated()
    want = Distiller(sim.model, net, ["block.2"])(X)[1].item()
    parallel = nn.DataParallel(sim.model)  # on a machine without accelerators it calls the module
    assert Distiller(parallel, net, ["block.2"])(X)[1].item() == pytest.approx(want, rel=1e-6)
    named = QuantizationSimModel(Named(copy.deepcopy(net)), X, "min_max", 3, 3)
    named.compute_encodings([X])
    teacher = Named(net)
    with pytest.raises(TrainingError, match=r"FXQ830(.|\n)*logits="):
        Distiller(named.model, teacher)(X)
    output, loss = Distiller(named.model, teacher, logits=lambda o: o["logits"])(X)
    assert set(output) == {"logits"}
    assert loss.item() == pytest.approx(Distiller(sim.model, net)(X)[1].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("features", "match"),
    [
        (["block.1"], "block.1"),  # folded away in the simulation
        (["block"], "block"),
        (["blok.2"], "did you mean 'block.2'"),
        ({"fc": 0.0}, "positive"),
        ([""], "no module"),
    ],
)
def test_features_that_are_none(features: object, match: str) -> None:
    sim, net = simulated()
    with pytest.raises(TrainingError, match=f"FXQ830(.|\n)*{match}"):
        Distiller(sim.model, net, features)  # type: ignore[arg-type]


def test_wrong_temperatures_and_shapes() -> None:
    sim, net = simulated()
    for temperature in (0.0, -1.0, math.inf, math.nan, "hot", True):
        with pytest.raises(TrainingError, match="FXQ830"):
            Distiller(sim.model, net, temperature=temperature)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="FXQ830"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(TrainingError, match="FXQ830"):
        feature_loss(torch.zeros(2, 3), torch.zeros(3, 2))
