"""Compilers see primitives, exporters one operator, and both compute what eager mode does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant.quantization as Q
from fxquant import QuantizationSimModel

# PyTorch's compiler makes one of these itself when it meets an autograd function
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

KINDS: dict[str, Callable[[], Any]] = {
    "tensor": lambda: Q.affine.QuantizeDequantize((), 8),
    "symmetric": lambda: Q.affine.QuantizeDequantize((), 8, True),
    "channels": lambda: Q.affine.QuantizeDequantize((4, 1), 8),
    "blocks": lambda: Q.affine.QuantizeDequantize((4, 2), 4, block_size=(-1, 4)),
    "integers": lambda: Q.affine.Quantize((), 8),
    "groups": lambda: Q.affine.GroupedBlockQuantizeDequantize(
        (4, 2), block_size=(-1, 4), block_grouping=(1, -1)
    ),
    "half": lambda: Q.float.FloatQuantizeDequantize(dtype=torch.float16),
}


@pytest.fixture(params=KINDS)
def quantizer(request: pytest.FixtureRequest) -> Any:
    q = KINDS[request.param]()
    with q.compute_encodings():
        q(torch.randn(4, 8))
    return q


def test_compiled_without_a_break(quantizer: nn.Module) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(4, 8)
    results = []
    for run in (quantizer, compiled):
        quantizer.zero_grad()
        x.grad = None
        y = run(x)
        (y * weight).sum().backward()
        results.append([torch.as_tensor(y.detach()), x.grad])
        results[-1] += [p.grad for p in quantizer.parameters()]
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(eager, traced, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["tensor", "channels", "blocks"])
def test_compiled_for_any_size(kind: str) -> None:
    q = KINDS[kind]().requires_grad_(False)
    q.set_range(-1.0, 2.0)
    torch._dynamo.reset()
    compiled: Any = torch.compile(q, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (3, 5):
        x = torch.randn(batch, 4, 8)
        assert torch.equal(compiled(x), torch.as_tensor(q(x)))


def test_the_step_is_computed_before_the_loop_that_reads_it() -> None:
    q = KINDS["symmetric"]()
    q.set_range(-1.0, 2.0)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled: Any = torch.compile(q, backend=keep, fullgraph=True)
    compiled(torch.randn(4, 8))
    # what a compiler may not fuse into its readers
    assert "as_strided" in graphs[0].code


@pytest.mark.parametrize("kind", ["tensor", "symmetric", "channels", "integers"])
def test_exported_as_one_operator(kind: str) -> None:
    q = KINDS[kind]().requires_grad_(False)
    q.set_range(-1.0, 2.0)
    x = torch.randn(4, 8)
    program = torch.export.export(nn.Sequential(q), (x,))
    name = "quantize" if kind == "integers" else "quantize_dequantize"
    called = [str(n.target) for n in program.graph.nodes]
    assert called.count(f"fxquant.{name}.default") == 1
    assert torch.equal(program.module()(x), torch.as_tensor(q(x)))


def test_operator_is_well_formed() -> None:
    x, scale, zero = torch.randn(4, 8), torch.tensor(0.1), torch.tensor(3.0)
    for name in ("quantize", "quantize_dequantize"):
        op = getattr(torch.ops.fxquant, name).default
        torch.library.opcheck(op, (x, scale, zero, 0, 255))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_simulation_is_exported_with_its_biases(groups: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4, 8, 8)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3, groups=groups), nn.Flatten(),
        nn.Linear(512, 4),
    )  # fmt: skip
    sim = QuantizationSimModel(net.eval(), x)
    sim.compute_encodings([x])
    with torch.no_grad():
        wanted = sim.model(x)
        exported = torch.export.export(sim.model, (x,)).module()
        torch.testing.assert_close(exported(x), wanted.as_subclass(Tensor), rtol=0, atol=1e-6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that the trace takes as constant
            traced_model = torch.jit.trace(sim.model, x, check_trace=False)
        torch.testing.assert_close(traced_model(x), wanted.as_subclass(Tensor), rtol=0, atol=1e-6)


def test_the_backward_pass_of_a_compiler_needs_the_tensor_alone() -> None:
    q = Q.affine.QuantizeDequantize((), 8)
    q.set_range(-1.0, 1.0)
    x = torch.linspace(-2.0, 2.0, 100).requires_grad_()
    kept: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = q._traced(x)
    assert [t.data_ptr() for t in kept if t.numel() == x.numel()] == [x.data_ptr()]
    y.sum().backward()
    assert x.grad is not None


def test_an_infinite_element_gives_finite_gradients_to_a_compiler() -> None:
    """It is clipped: all of its gradient goes to the end of the range, as in eager mode."""
    found = []
    for compiled in (False, True):
        q = Q.affine.QuantizeDequantize((), 8)
        q.set_range(-1.0, 1.0)
        x = torch.tensor([0.3, torch.inf, -torch.inf], requires_grad=True)
        y = (q._traced if compiled else q)(x)
        (y * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
        found.append([x.grad, q.min.grad, q.max.grad])
    for eager, written_out in zip(*found, strict=True):
        torch.testing.assert_close(eager, written_out)  # float32, sums of three
        assert bool(written_out.isfinite().all())
