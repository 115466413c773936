"""Groups for optimizers, the gradient scale of learned ranges, and what is said to train."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.errors import TrainingError
from fxquant.qat import parameter_groups, training_table, what_trains
from fxquant.quantization import affine
from fxquant.quantization.affine import AffineQuantizer
from fxquant.quantization.affine.gradient_scale import Counted

LEARNED = "training_range_learning_with_tf_init"


def simulated(scheme: str, *, calibrated: bool = True) -> tuple[QuantizationSimModel, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(16, 6)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    sim = QuantizationSimModel(net, x, scheme)
    if calibrated:
        sim.compute_encodings([x])
    return sim, x


def test_every_parameter_is_in_one_group_at_most() -> None:
    sim, _ = simulated(LEARNED)
    groups = parameter_groups(sim.model, 1e-3, 1e-2, weight_decay=0.1)
    ids = [id(p) for g in groups for p in g["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in sim.model.parameters() if p.requires_grad}
    weights, *ranges = groups
    assert (weights["name"], weights["lr"], weights["weight_decay"]) == ("weights", 1e-3, 0.1)
    assert ranges
    assert all(g["weight_decay"] == 0.0 for g in ranges)


def test_adam_moves_ranges_in_proportion_to_their_width() -> None:
    sim, x = simulated(LEARNED)
    optimizer = torch.optim.Adam(parameter_groups(sim.model, 0.0, 1e-2))
    learned = [q for _, q in sim.named_quantizers() if isinstance(q, AffineQuantizer)]
    before = [(q.max.detach().clone(), q.get_max() - q.get_min()) for q in learned]  # type: ignore[operator]
    sim.model(x).square().sum().backward()
    optimizer.step()
    assert learned
    for q, (high, widths) in zip(learned, before, strict=True):
        width, step = widths.mean(), (q.max - high).abs().max()
        # a power of two next to the width, and an Adam step is at most its learning rate
        assert step <= 1e-2 * width * math.sqrt(2) * 1.01


def test_there_is_one_group_where_ranges_do_not_learn() -> None:
    sim, _ = simulated("min_max")
    (group,) = parameter_groups(sim.model, 1e-3)
    assert len(group["params"]) == 4
    assert [r.range for r in what_trains(sim.model)].count("fixed") == 2


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf, "fast", None])
def test_wrong_learning_rates(rate: object) -> None:
    sim, _ = simulated(LEARNED)
    with pytest.raises(TrainingError, match="FXQ801"):
        parameter_groups(sim.model, rate)  # type: ignore[arg-type]


def test_nothing_trains_and_not_calibrated() -> None:
    sim, _ = simulated("min_max")
    sim.model.requires_grad_(requires_grad=False)
    with pytest.raises(TrainingError, match="nothing of the model trains"):
        parameter_groups(sim.model, 1e-3)
    sim, _ = simulated(LEARNED, calibrated=False)
    with pytest.raises(TrainingError, match="not calibrated"):
        parameter_groups(sim.model, 1e-3)


def test_the_table_of_what_trains() -> None:
    sim, _ = simulated("min_max")
    sim.model.get_submodule("2").requires_grad_(requires_grad=False)
    text = training_table(sim.model)
    assert [" ".join(line.split()) for line in text.splitlines()[2:]] == [
        "0.param_quantizers.weight weight trained follows the weight",
        "0.param_quantizers.bias bias trained input * weight",
        "1.output_quantizers.0 output fixed",
        "2.param_quantizers.weight weight frozen fixed",
        "2.param_quantizers.bias bias frozen input * weight",
        "input_1_stub.output_quantizers.0 output fixed",
    ]
    sim, _ = simulated(LEARNED)
    assert {r.range for r in what_trains(sim.model)} == {"learned", "input * weight"}


def gradients(counted: Counted | None, x: Tensor, **grid: Any) -> tuple[Tensor, Tensor]:
    options: dict[str, Any] = {"shape": (), "bitwidth": 4, **grid}
    q = affine.QuantizeDequantize(**options)
    q.set_range(-1.0, 1.5)
    q.gradient_scale = counted
    torch.manual_seed(1)
    (q(x) * torch.randn_like(x)).sum().backward()
    assert q.min.grad is not None
    assert q.max.grad is not None
    return q.min.grad, q.max.grad


@pytest.mark.parametrize(
    ("counted", "grid", "elements", "above"),
    [
        ("activation", {"symmetric": False}, 3 * 5 * 5, 15),
        ("parameter", {"symmetric": False}, 8 * 3 * 5 * 5, 15),
        ("parameter", {"symmetric": True, "shape": (8, 1, 1, 1)}, 3 * 5 * 5, 7),
        ("activation", {"symmetric": True}, 3 * 5 * 5, 7),
    ],
)
def test_the_gradient_scale_is_that_of_the_paper(
    counted: Counted, grid: dict[str, object], elements: int, above: int
) -> None:
    x = torch.randn(8, 3, 5, 5)
    plain, scaled = gradients(None, x, **grid), gradients(counted, x, **grid)
    factor = 1 / math.sqrt(elements * above)
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(b, a * factor)


def test_the_compiled_form_has_the_same_gradient_scale() -> None:
    x = torch.randn(8, 16)
    kinds: tuple[Counted | None, ...] = (None, "activation")
    for counted in kinds:
        q = affine.QuantizeDequantize(shape=(), bitwidth=4)
        q.set_range(-1.0, 1.5)
        q.gradient_scale = counted
        (q(x) * x).sum().backward()
        eager = q.max.grad
        q.max.grad = None
        (q._traced(x) * x).sum().backward()
        torch.testing.assert_close(q.max.grad, eager)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_a_range_are_those_of_the_written_out_surrogate(*, symmetric: bool) -> None:
    """Float64 differences of `clamp(x / s + z)` with the rounding error held: the surrogate."""
    torch.manual_seed(0)
    x = torch.randn(64, dtype=torch.float64)
    weight = torch.randn(64, dtype=torch.float64)
    q = affine.QuantizeDequantize(shape=(), bitwidth=4, symmetric=symmetric)
    q.set_range(-0.9, 1.3)
    (q(x) * weight).sum().backward()

    def step_of(low: float, high: float) -> float:
        return max(high / 7, -low / 8) if symmetric else (high - low) / 15

    qmin, qmax = (-8, 7) if symmetric else (0, 15)
    base = step_of(-0.9, 1.3)
    middle = 0 if symmetric else round(0.9 / base)
    error, zero_error = (x / base).round() - x / base, middle - 0.9 / base
    integers = (x / base).round() + middle
    kept = (integers >= qmin) & (integers <= qmax)

    def surrogate(low: float, high: float) -> float:
        """Rounding is a constant added, of the tensor and of the zero point; so is clipping."""
        step = step_of(low, high)
        zero = 0.0 if symmetric else -low / step + zero_error
        n = torch.where(kept, x / step + error + zero, integers.clamp(qmin, qmax))
        return float(((n - zero) * step * weight).sum())

    for end, move in ((q.min, (1e-7, 0.0)), (q.max, (0.0, 1e-7))):
        up = surrogate(-0.9 + move[0], 1.3 + move[1])
        down = surrogate(-0.9 - move[0], 1.3 - move[1])
        # float32 ranges: the step has 24 bits, and the sum of 64 terms loses some
        assert end.grad is not None
        torch.testing.assert_close(float(end.grad), (up - down) / 2e-7, rtol=1e-4, atol=1e-4)
