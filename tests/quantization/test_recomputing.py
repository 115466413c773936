"""Results of quantizers are computed again for the backward pass, to the last bit, and not kept."""

from __future__ import annotations

import copy
import functools
import gc
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

from fxquant import QuantizationSimModel
from fxquant.errors import QuantizationError
from fxquant.quantization import affine

LEARNED = "training_range_learning_with_tf_init"
SCHEMES = ("min_max", LEARNED)


class Attention(nn.Module):
    """Operands of matrix products that are views, copies and chunks; a softmax; a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, 32] -> [N, T, 32]."""
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) * 8**-0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, 32))
        return x + self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class Convolutions(nn.Module):
    """A residual connection, pooling, and activations that keep their argument."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.third, self.fc = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 4]."""
        x = F.max_pool2d(torch.relu(self.first(x)), 2)
        x = F.relu6(self.second(x)) + x
        return self.fc(F.silu(self.third(x)).mean((2, 3)))  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (Attention, (4, 64, 32)),
    "convolutions": (Convolutions, (4, 3, 24, 24)),
}


def simulated(case: str, scheme: str, bits: int = 8) -> tuple[nn.Module, nn.Module, Tensor]:
    """The float network, its simulation in training, and an input that some ranges clip."""
    torch.manual_seed(0)
    build, shape = CASES[case]
    net, x = build().train(), torch.randn(shape)
    sim = QuantizationSimModel(net, x, scheme, bits, bits)
    sim.compute_encodings([x])
    return net, sim.model.train(), x * 1.2


def gradients(model: nn.Module, x: Tensor, call: Any = None) -> list[Tensor | None]:
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    (call or model)(leaf).square().sum().backward()
    found = [leaf.grad, *(p.grad for p in model.parameters())]
    return [None if g is None else g.clone() for g in found]


def equal(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    return all(
        (p is None) == (q is None) and (p is None or q is None or torch.equal(p, q))
        for p, q in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_tensors_that_are_kept(
    case: str, scheme: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, x = simulated(case, scheme, bits)
    found = gradients(model, x)
    assert any(g is not None and bool(g.any()) for g in found)
    # where others decide what is kept
    with save_on_cpu():
        assert equal(found, gradients(model, x))
    for reentrant in (False, True):
        call = functools.partial(checkpoint, model, use_reentrant=reentrant)
        assert equal(found, gradients(model, x, call))
    # where nothing is computed again
    monkeypatch.setattr("fxquant.quantization.kernels.hooks_are_free", lambda: False)
    assert equal(found, gradients(model, x))


def live_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass leaves with the allocator for the backward pass."""
    model(x)
    gc.collect()
    with profile(profile_memory=True) as profiled:
        out = model(x)
    events: Any = profiled.profiler.kineto_results.events()
    del out
    return sum(e.nbytes() for e in events if e.name() == "[memory]")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_stays_for_the_backward_pass_is_at_most_a_quarter_more(
    case: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what numpy allocates is not counted by the profiler
    monkeypatch.setattr("fxquant.quantization.kernels._SMALL", 1 << 62)
    net, model, x = simulated(case, scheme)
    # the float network's own attention is written out as well: no fused kernel
    whole = live_bytes(net, x)
    computed = live_bytes(model, x)
    monkeypatch.setattr("fxquant.quantization.kernels.hooks_are_free", lambda: False)
    monkeypatch.setattr("fxquant.quantization.recomputing.hooks_are_free", lambda: False)
    kept = live_bytes(model, x)
    assert computed <= 1.25 * whole
    assert computed < 0.9 * kept


@pytest.mark.parametrize("learned", [False, True])
def test_nothing_stays_after_the_backward_pass(learned: bool) -> None:
    q = affine.QuantizeDequantize((), 8).requires_grad_(learned)
    q.set_range(-1.0, 1.0)
    w = torch.randn(8, 64, requires_grad=True)
    x = torch.relu(torch.randn(32, 64, requires_grad=True))
    loss = F.linear(q(x), w).sum()
    loss.backward()
    storage = x.untyped_storage()
    others = torch._C._storage_Use_Count(storage._cdata)
    del x
    gc.collect()
    # the graph is still there, as in a loop that holds its loss; the memory is not
    assert torch._C._storage_Use_Count(storage._cdata) < others
    assert torch._C._storage_Use_Count(storage._cdata) == 1
    assert loss.grad_fn is not None


def test_what_is_saved_is_computed_again() -> None:
    q = affine.QuantizeDequantize((), 8)
    q.set_range(-1.0, 1.0)
    w = torch.randn(8, 64, requires_grad=True)
    y = q(torch.randn(32, 64, requires_grad=True) * 1.0)
    node: Any = F.linear(y, w).grad_fn
    assert node._saved_self.data_ptr() != y.data_ptr()
    assert torch.equal(node._saved_self, y)


@pytest.mark.parametrize("elements", [0, 6])
def test_arguments_may_be_named_and_empty(elements: int) -> None:
    q = affine.QuantizeDequantize((), 8)
    q.set_range(-1.0, 1.0)
    w = torch.randn(5, 4, requires_grad=True)
    y = q(torch.zeros(elements, 4, requires_grad=True) + 0.3)
    F.linear(input=y, weight=w).sum().backward()
    torch.testing.assert_close(w.grad, y.detach().sum(0).expand(5, 4))


def test_a_result_that_is_written_to_is_kept_as_it_is() -> None:
    q = affine.QuantizeDequantize((), 8)
    q.set_range(-1.0, 1.0)
    w = torch.ones(4, requires_grad=True)
    y = q(torch.linspace(-1, 1, 4)).add_(0.123)
    (y * w).sum().backward()
    assert torch.equal(w.grad, y.detach())  # type: ignore[arg-type]


def test_writing_to_a_result_after_it_was_saved_changes_no_gradient() -> None:
    q = affine.QuantizeDequantize((), 8)
    q.set_range(-1.0, 1.0)
    w = torch.ones(4, requires_grad=True)
    y = q(torch.linspace(-1, 1, 4))
    before = y.detach().clone()
    loss = (y * w).sum()
    with torch.no_grad():
        y.zero_()
    loss.backward()
    assert torch.equal(w.grad, before)  # type: ignore[arg-type]


@pytest.mark.parametrize("written", ["input", "operand"])
def test_writing_to_what_the_backward_pass_needs_is_an_error(written: str) -> None:
    q = affine.QuantizeDequantize((), 8)
    q.set_range(-1.0, 1.0)
    x, other = torch.linspace(-1, 1, 4), torch.ones(4, requires_grad=True) * 1.0
    loss = (q(x) * other).sum()
    with torch.no_grad():
        (x if written == "input" else other).zero_()
    with pytest.raises(QuantizationError, match="FXQ450"):
        loss.backward()


def used(found: Any) -> list[Tensor]:
    return [g for g in found if g is not None]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_second_backward_pass_and_gradients_of_gradients(scheme: str) -> None:
    _, model, x = simulated("attention", scheme)
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = model(x).square().sum()
    first = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    again = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    assert equal(list(first), list(again))
    graph = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    for a, b in zip(used(first), used(graph), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.stack([g.square().sum() for g in used(graph)]).sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in parameters)


def test_gradients_of_gradients_of_a_learned_range() -> None:
    """Of the written-out surrogate, differentiated twice; the factors of a range are constants."""
    x = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = torch.linspace(-1, 1, 50, dtype=torch.float64)
    slopes = []
    for compiled in (False, True):
        q = affine.QuantizeDequantize((), 4, True)
        q.set_range(-1.0, 1.0)
        leaf = (x * 0.9).requires_grad_()
        y = (q._traced if compiled else q)(F.silu(leaf))
        (slope,) = torch.autograd.grad((y.square() * w).sum(), q.max, create_graph=True)
        slope.backward()
        slopes.append((slope.detach(), leaf.grad))
    for eager, written_out in zip(*slopes, strict=True):
        torch.testing.assert_close(eager, written_out, rtol=1e-5, atol=1e-5)


def test_results_are_copied_and_written_as_other_tensors() -> None:
    q = affine.QuantizeDequantize((4, 1), 8)
    q.set_range(-1.0, 1.0)
    for y in (q.transform(torch.randn(4, 3)), q(torch.randn(4, 3))):
        file = io.BytesIO()
        torch.save(y.detach(), file)
        torch.save(y, file)
        assert torch.equal(copy.deepcopy(y.detach()), y)
