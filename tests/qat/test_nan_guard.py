"""The guard names the layer, the user's line and the step at which a number is none."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.errors import TrainingError
from fxquant.qat import nan_guard
from tests.helpers.modules import quantized

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 6] -> [N, 3]."""
        y = torch.relu(self.a(x))
        y = torch.special.xlog1py(y, y - 1.0)
        return self.b(y)  # type: ignore[no-any-return]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("keep", torch.ones(6, 6).tril().bool())

    def forward(self, x: Tensor) -> Tensor:
        """[N, 6] -> [N, 6]."""
        y = self.fc(x)
        scores = (y.unsqueeze(1) * y.unsqueeze(2)).masked_fill(~self.keep, -math.inf)  # type: ignore[operator]
        return (scores.softmax(-1) @ y.unsqueeze(2)).squeeze(2)  # type: ignore[no-any-return]


def line(net: type[nn.Module], text: str) -> str:
    lines, first = inspect.getsourcelines(net.forward)
    return f"test_nan_guard.py:{first + next(i for i, s in enumerate(lines) if text in s)}"


def simulated(net: nn.Module | None = None) -> QuantizationSimModel:
    torch.manual_seed(0)
    sim = QuantizationSimModel((net or Net()).eval(), X, "training_range_learning_with_tf_init")
    sim.compute_encodings([X])
    return sim


def hooks(model: nn.Module) -> int:
    of_modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return of_modules + sum(len(p._backward_hooks or {}) for p in model.parameters())


def test_nothing_is_found_where_all_is_well_and_nothing_is_left() -> None:
    sim = simulated()
    assert hooks(sim.model) == 0
    with nan_guard(sim.model) as guard:
        for _ in range(3):
            sim.model(X)
        assert hooks(sim.model) > 5
        with torch.no_grad():
            sim.model(X)
        assert guard.step == 3
    assert hooks(sim.model) == 0


def test_an_overflow_that_rounding_would_hide() -> None:
    sim = simulated()
    with torch.no_grad():
        quantized(sim, "a").get_parameter("bias").fill_(3e38)
        quantized(sim, "a").get_parameter("weight").fill_(1e38)
    for _, quantizer in quantized(sim, "a").param_quantizers.active():
        quantizer.enabled = False
    with torch.no_grad():
        assert bool(sim.model(X * 10).isfinite().all())  # clipped to the end of the grid
    with nan_guard(sim.model), pytest.raises(TrainingError) as caught:
        sim.model(X * 10)
    assert caught.value.code == "FXQ831"
    assert "infinity in what the layer puts out" in caught.value.what
    assert "step 1" in caught.value.what
    assert str(caught.value.at).startswith("a (a), ")
    assert line(Net, "self.a(x)") in str(caught.value.at)


def test_a_parameter_that_the_optimizer_made_nan() -> None:
    sim = simulated()
    sim.model(X)
    with nan_guard(sim.model):
        sim.model(X)
        with torch.no_grad():
            quantized(sim, "b").get_parameter("bias")[1] = math.nan
        with pytest.raises(TrainingError, match="its bias holds NaN") as caught:
            sim.model(X)
    assert "step 2" in caught.value.what
    assert line(Net, "self.b(y)") in str(caught.value.at)


def test_a_gradient_that_divides_by_zero() -> None:
    sim = simulated()
    # y log y has no derivative at zero, which the ReLU puts out
    with nan_guard(sim.model), pytest.raises(TrainingError) as caught:
        sim.model(X).sum().backward()
    assert "in the gradient that comes from special_xlog1py" in caught.value.what
    assert line(Net, "torch.special.xlog1py(y, y - 1.0)") in str(caught.value.at)
    assert hooks(sim.model) == 0
    with nan_guard(sim.model, gradients=False):
        sim.model(X).sum().backward()


def test_a_loss_that_is_nan() -> None:
    sim = simulated()
    with nan_guard(sim.model), pytest.raises(TrainingError, match="comes from the loss to b"):
        (sim.model(X) * math.nan).sum().backward()


def test_a_gradient_of_a_weight() -> None:
    sim = simulated()
    weight = quantized(sim, "b").get_parameter("weight")
    with nan_guard(sim.model), pytest.raises(TrainingError, match=r"gradient of b\.weight") as e:
        weight.backward(torch.full_like(weight, math.inf))
    assert line(Net, "self.b(y)") in str(e.value.at)


def test_a_range_that_became_nan() -> None:
    sim = simulated()
    with nan_guard(sim.model):
        with torch.no_grad():
            quantized(sim, "a").param_quantizers["weight"].max.fill_(math.nan)
        with pytest.raises(TrainingError, match="range of a quantizer") as caught:
            sim.model(X)
    assert line(Net, "self.a(x)") in str(caught.value.at)


def test_masks_are_no_fault_and_what_they_lead_to_is() -> None:
    sim = simulated(Masked())
    with nan_guard(sim.model) as guard:
        sim.model(X).sum().backward()
    assert guard.step == 1
    with torch.no_grad():
        sim.model.get_buffer("keep")[2].fill_(0)  # a row of which nothing is kept
    with nan_guard(sim.model), pytest.raises(TrainingError, match="NaN in what") as caught:
        sim.model(X)
    assert "softmax" in str(caught.value.at)


def test_inputs_and_models_without_a_graph() -> None:
    sim = simulated()
    with nan_guard(sim.model), pytest.raises(TrainingError, match="inputs of the model"):
        sim.model(X * math.nan)
    net = nn.Sequential(nn.Linear(6, 2), nn.Sequential(nn.ReLU()))
    with torch.no_grad():
        net[0].bias.fill_(math.inf)  # type: ignore[operator]
    with nan_guard(net), pytest.raises(TrainingError, match="its bias holds infinity") as caught:
        net(X)
    assert caught.value.at == "0"
