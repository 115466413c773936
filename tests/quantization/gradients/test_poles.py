"""Where rounding moves a value to a pole of a derivative, its gradient is bounded by the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant.quantization as Q
from fxquant import QuantizationSimModel, prepare_model

# PyTorch's compiler makes one of these itself when it meets an autograd function
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

LEARNED = "training_range_learning_with_tf_init"
STEP = 0.125

# the function, its pole, and the gradient at the pole as a formula of the step
UNARY: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "sqrt": (torch.sqrt, 0.0, 0.5 / math.sqrt(STEP / 2)),
    "method": (Tensor.sqrt, 0.0, 0.5 / math.sqrt(STEP / 2)),
    "power": (lambda x: x**0.5, 0.0, 0.5 / math.sqrt(STEP / 2)),
    "rsqrt": (torch.rsqrt, 0.0, -0.5 * (STEP / 2) ** -1.5),
    "log": (torch.log, 0.0, 2 / STEP),
    "log2": (torch.log2, 0.0, 2 / STEP / math.log(2)),
    "log1p": (torch.log1p, -1.0, 2 / STEP),
    "reciprocal": (torch.reciprocal, 0.0, -4 / STEP**2),
    "one over": (lambda x: 1.0 / x, 0.0, -4 / STEP**2),
    "inverse cube": (lambda x: torch.pow(x, -3), 0.0, -3 * (2 / STEP) ** 4),
    "asin": (torch.asin, 1.0, 1 / math.sqrt(1 - (1 - STEP / 2) ** 2)),
    "atanh": (torch.special.erfinv, -1.0, 0.0),  # compared with PyTorch's own half a step inside
    "acosh": (torch.acosh, 1.0, 1 / math.sqrt((1 + STEP / 2) ** 2 - 1)),
}


def on_a_grid(values: list[float]) -> tuple[Tensor, Tensor]:
    """Values that are rounded to multiples of the step, and the rounded tensor."""
    q = Q.affine.QuantizeDequantize((), 8, True).requires_grad_(False)
    q.set_range(-128 * STEP, 127 * STEP)
    x = torch.tensor(values, requires_grad=True)
    return x, q(x)


@pytest.mark.parametrize("name", UNARY)
def test_a_pole_has_the_derivative_half_a_step_away(name: str) -> None:
    function, pole, expected = UNARY[name]
    inner = -0.5 if pole == 1.0 and name != "acosh" else 0.5
    if name == "atanh":
        inside = torch.tensor(pole + inner * STEP, requires_grad=True)
        expected = float(torch.autograd.grad(function(inside), inside)[0])
    x, rounded = on_a_grid([pole + inner * 0.8 * STEP, pole + 3 * inner * STEP])
    y = function(rounded)
    plain = torch.tensor([pole, pole + 4 * inner * STEP], requires_grad=True)
    exact = function(plain)
    torch.testing.assert_close(y.detach(), exact.detach(), rtol=0, atol=0)  # what is deployed
    (own,) = torch.autograd.grad(y.sum(), x)
    (real,) = torch.autograd.grad(exact.sum(), plain)
    assert not real[0].isfinite()
    assert float(own[0]) == pytest.approx(expected, rel=1e-5)
    assert own[1] == real[1]


def test_both_operands_of_a_division() -> None:
    divisions: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda a, b: a / b,
        lambda a, b: torch.div(a, other=b),
    )
    for division in divisions:
        x, rounded = on_a_grid([0.04, -0.04, 0.5])
        numerator = torch.tensor([3.0, 3.0, 3.0], requires_grad=True)
        y = division(numerator, rounded)
        assert y.tolist() == [math.inf, math.inf, 6.0]
        of_top, of_bottom = torch.autograd.grad(y.sum(), (numerator, x))
        assert of_top.tolist() == [0.0, 0.0, 2.0]  # on which side of zero is not known
        assert of_bottom.tolist() == [-3 * (2 / STEP) ** 2] * 2 + [-12.0]


@pytest.mark.parametrize("function", [torch.hypot, Tensor.hypot, torch.atan2])
def test_a_pole_of_two_arguments_is_where_both_are_zero(function: Any) -> None:
    """Derivatives there are odd: of opposite points nothing is left."""
    x, first = on_a_grid([0.04, -0.04, 0.5, 0.0])
    other = torch.tensor([0.0, 0.0, 0.25, 0.5], requires_grad=True)
    plain = torch.tensor([0.0, 0.0, 0.5, 0.0], requires_grad=True)
    y, exact = function(first, other), function(plain, other)
    assert y.tolist() == exact.tolist()
    found = torch.autograd.grad(y.sum(), (x, other))
    real = torch.autograd.grad(exact.sum(), (plain, other))
    for own, wanted in zip(found, real, strict=True):
        assert own[:2].tolist() == [0.0, 0.0]
        assert torch.equal(own[2:], wanted[2:])
    x, first = on_a_grid([0.04])
    of_one = torch.autograd.grad(function(first, torch.zeros(1)).sum(), x)  # a constant beside it
    assert of_one[0].isfinite().all()


@pytest.mark.parametrize("exponent", [1, 2, 1.5, 0])
def test_powers_without_a_pole_are_as_they_are(exponent: float) -> None:
    x, rounded = on_a_grid([0.01, 1.0])
    y = rounded**exponent
    assert "WithValue" not in type(y.grad_fn).__name__
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_channels_have_steps_of_their_own() -> None:
    q = Q.affine.QuantizeDequantize((2, 1), 8).requires_grad_(False)
    q.set_range(torch.zeros(2, 1), torch.tensor([[255 * STEP], [255 * STEP * 4]]))
    x = torch.full((2, 3), 0.01, requires_grad=True)
    torch.log(q(x)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[:, 0], torch.tensor([2 / STEP, 0.5 / STEP]))


class Spectrum(nn.Module):
    """Magnitudes of a transform: a root of a sum of squares, which is no grid's own result."""

    def __init__(self) -> None:
        super().__init__()
        self.transform, self.fc = nn.Conv1d(1, 16, 8, stride=4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T] -> [N, 4]."""
        s = self.transform(x[:, None])
        power = s[:, :8] ** 2 + s[:, 8:] ** 2
        level = power.sqrt().mean(-1)
        return self.fc(level / (level.sum(-1, keepdim=True).sqrt() + torch.log1p(level)))  # type: ignore[no-any-return]


def spectrum() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(8, 64)
    x[:, 32:] *= 1e-3  # silence after sound: rounded to zero
    prepared = prepare_model(Spectrum().eval(), x)
    sim = QuantizationSimModel(prepared, x, LEARNED)
    sim.compute_encodings([x])
    return sim.model.train(), x


def gradients(model: nn.Module, run: Any, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    run(x).square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_silence_trains_to_finite_numbers_compiled_or_not() -> None:
    model, x = spectrum()
    torch._dynamo.reset()
    eager = gradients(model, model, x)
    assert all(g.isfinite().all() for g in eager.values())
    assert eager["transform.weight"].any()
    traced = gradients(model, torch.compile(model, backend="aot_eager", fullgraph=True), x)
    for name, gradient in traced.items():
        torch.testing.assert_close(gradient, eager[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [Q.affine.QuantizeDequantize, Q.affine.Quantize])
@pytest.mark.parametrize("shape", [(), (4, 1)])
def test_infinity_is_clipped_and_leaves_the_ranges_gradient_a_number(
    shape: tuple[int, ...], kind: Any
) -> None:
    torch._dynamo.reset()
    q = kind(shape, 8)
    q.set_range(-1.0, 2.0)
    x = torch.linspace(-0.5, 1.5, 32).reshape(4, 8)
    x[0, 0], x[2, 3] = -math.inf, math.inf
    weight = torch.linspace(1, 2, 32).reshape(4, 8)

    def found(x: Tensor, run: Any, **options: Any) -> tuple[Tensor, ...]:
        x = x.clone().requires_grad_()
        return torch.autograd.grad((run(x) * weight).sum(), (x, q.min, q.max), **options)

    expected = found(x.clamp(-100, 100), q)
    assert all(g.isfinite().all() for g in expected)
    compiled = torch.compile(q, backend="aot_eager", fullgraph=True)
    others = [found(x, q), found(x, q, create_graph=True), found(x, compiled)]
    for other in others:
        for a, b in zip(expected, other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
