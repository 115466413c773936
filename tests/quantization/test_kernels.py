"""The arithmetic of quantization is the runtime's, bit for bit, and its gradients are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from fxquant.quantization import affine, kernels, pieces, surrogate, traced
from fxquant.quantization.range_to_qparams import Factors, IntegerRange
from tests.quantization import runtime

GRIDS = sorted(runtime.TYPES)
grids = st.sampled_from(GRIDS)
ends = st.floats(0.0, 1e6, width=32)


def awkward(seed: int, scale: Tensor, count: int = 512) -> Tensor:
    """Values in and around a grid: normal, ties, grid points, neighbours of ties, huge ones."""
    g = torch.Generator().manual_seed(seed)
    steps = torch.randint(-300, 300, (count,), generator=g)
    ties = (steps + 0.5) * scale
    nudged = torch.nextafter(ties, torch.randn(count, generator=g) * torch.inf)
    huge = torch.tensor([0.0, -0.0, 3e38, -3e38, torch.inf, -torch.inf, 1e-40, -1e-40])
    normal = torch.randn(count, generator=g) * 100 * scale
    return torch.cat([normal, ties, nudged, steps * scale, huge])


def bits(x: Tensor) -> Tensor:
    """The bits of float32 values: tells 0.0 from -0.0."""
    return x.detach().contiguous().view(torch.int32)


@settings(deadline=None, max_examples=150)
@given(grids, ends, ends, st.booleans(), st.integers(0, 2**31))
def test_per_tensor_equals_onnxruntime(
    grid: tuple[int, int], low: float, high: float, symmetric: bool, seed: int
) -> None:
    q = affine.QuantizeDequantize((), qmin=grid[0], qmax=grid[1], symmetric=symmetric)
    q.set_range(-low, high)
    encoding = q.get_encodings()
    assert encoding is not None
    x = awkward(seed, encoding.scale)
    want = torch.from_numpy(runtime.qdq(x, encoding.scale, encoding.zero_point, grid))
    with torch.no_grad():
        got = q(x)
    assert torch.equal(bits(got), bits(want))
    assert torch.equal(bits(got.quantize().dequantize()), bits(want))


@settings(deadline=None, max_examples=60)
@given(grids, st.integers(0, 2), st.booleans(), st.integers(0, 2**31))
def test_per_channel_equals_onnxruntime(
    grid: tuple[int, int], axis: int, symmetric: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    sizes = (3, 4, 5)
    shape = [1, 1, 1]
    shape[axis] = sizes[axis]
    q = affine.QuantizeDequantize(shape, qmin=grid[0], qmax=grid[1], symmetric=symmetric)
    q.set_range(-torch.rand(shape, generator=g) * 3, torch.rand(shape, generator=g) * 3)
    encoding = q.get_encodings()
    assert encoding is not None
    x = (torch.randint(-70000, 70000, sizes, generator=g) / 2) * encoding.scale
    x = torch.where(torch.rand(sizes, generator=g) < 0.5, x, torch.randn(sizes, generator=g))
    flat = encoding.scale.flatten(), encoding.zero_point.flatten()
    want = torch.from_numpy(runtime.qdq(x, *flat, grid, axis))
    with torch.no_grad():
        assert torch.equal(bits(q(x)), bits(want))


@settings(deadline=None, max_examples=40)
@given(grids, st.sampled_from([1, 2, 4, 8]), st.integers(0, 1), st.integers(0, 2**31))
def test_per_block_equals_onnxruntime(
    grid: tuple[int, int], block: int, axis: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    sizes, shape, blocks = (8, 16), [8, 16], [-1, -1]
    shape[axis] //= block
    blocks[axis] = block
    q = affine.QuantizeDequantize(shape, qmin=grid[0], qmax=grid[1], block_size=blocks)
    x = torch.randn(sizes, generator=g)
    with q.compute_encodings():
        q(x)
    encoding = q.get_encodings()
    assert encoding is not None
    want = torch.from_numpy(runtime.qdq(x, encoding.scale, encoding.zero_point, grid, axis, block))
    with torch.no_grad():
        assert torch.equal(bits(q(x)), bits(want))


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([(0, 255), (-128, 127)]), ends, ends, st.integers(0, 2**31))
def test_equals_the_reference_of_onnx(
    grid: tuple[int, int], low: float, high: float, seed: int
) -> None:
    q = affine.QuantizeDequantize((), qmin=grid[0], qmax=grid[1])
    q.set_range(-low, high)
    encoding = q.get_encodings()
    assert encoding is not None
    # the reference casts before it clips, so values must stay within int32
    x = awkward(seed, encoding.scale)
    x = x[x.abs() < encoding.scale * 2**20]
    zero = encoding.zero_point.numpy().astype(np.int32)
    feeds = {"x": x.numpy(), "scale": encoding.scale.numpy(), "zero": zero}
    want = ReferenceEvaluator(runtime.model(runtime.TYPES[grid], 0, 0)).run(None, feeds)
    with torch.no_grad():
        assert isinstance(want, list)
        assert np.array_equal(torch.as_tensor(q(x)).numpy(), want[0])


@pytest.mark.parametrize("size", [(1 << 20) + 77, (1 << 21)])
def test_large_tensors_are_cut_into_parts_without_a_trace(size: int) -> None:
    x = torch.randn(size)
    p = kernels.affine(torch.tensor(0.03), torch.tensor(117.0), 0, 255, single=True)
    whole = kernels.quantize_dequantize(x, kernels.affine(p.scale, p.zero_point, 0, 255))
    assert torch.equal(bits(kernels.quantize_dequantize(x, p)), bits(whole))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"shape": (1, 6, 1, 1)}, {"shape": (6, 2, 3), "block_size": (1, 5, 4)}],
    ids=["tensor", "channels", "blocks"],
)
def test_pieces_give_the_same_values_and_gradients(
    options: dict[str, Any],
    symmetric: bool,
    layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q = affine.QuantizeDequantize(bitwidth=8, symmetric=symmetric, **options)
    q.set_range(-1.0, 2.0)
    x = torch.randn(4, 6, 10, 12).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(4, 6, 10, 12)
    found = []
    for size, learn in ((1 << 19, True), (50, True), (50, False)):
        monkeypatch.setattr(pieces, "SIZE", size)
        q.requires_grad_(learn)
        y = q(x)
        x.grad = q.min.grad = q.max.grad = None
        y.backward(weight)
        found.append((y.detach().as_subclass(Tensor), x.grad, q.min.grad, q.max.grad))
    for whole, cut in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(whole, cut, rtol=1e-5, atol=2e-4)  # sums in another order
    assert torch.equal(found[0][0], found[2][0])
    assert x.grad is not None
    assert torch.equal(torch.as_tensor(found[0][1]), x.grad)


@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_gradients_of_gradients(shape: tuple[int, ...]) -> None:
    q = affine.QuantizeDequantize(shape, 8)
    q.set_range(-1.0, 2.0)
    x = torch.randn(3, 40, requires_grad=True)
    weight = torch.randn(3, 40, requires_grad=True)
    (first,) = torch.autograd.grad((q(x) * weight).sum(), x, create_graph=True)
    low = torch.autograd.grad((q(x) * weight).sum(), q.min, create_graph=True)[0]
    (mask,) = torch.autograd.grad(first.sum(), weight)
    assert torch.equal(mask, ((x >= -1.0) & (x <= 2.0)).float())
    (slope,) = torch.autograd.grad(low.sum(), weight)
    torch.testing.assert_close((slope * weight).sum(), low.sum())  # linear in the weights


@pytest.mark.parametrize("layout", ["last", "transposed", "strided", "expanded"])
@pytest.mark.parametrize("shape", [(), (1, 6, 1, 1)])
def test_memory_layouts(layout: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(4, 6, 10, 12)
    views = {
        "last": x.contiguous(memory_format=torch.channels_last),
        "transposed": torch.randn(4, 6, 12, 10).mT,
        "strided": torch.randn(4, 6, 10, 24)[..., ::2],
        "expanded": torch.randn(4, 6, 1, 12).expand(4, 6, 10, 12),
    }
    y = views[layout]
    q = affine.QuantizeDequantize(shape, 8)
    q.set_range(-1.0, 2.0)
    gradient = torch.randn(4, 6, 10, 12)
    results = []
    for source in (y.detach(), y.detach().clone(memory_format=torch.contiguous_format)):
        source.requires_grad_()
        q.zero_grad()
        out = q(source)
        out.backward(gradient)
        assert source.grad is not None
        assert q.min.grad is not None
        assert q.max.grad is not None
        results.append((out.detach(), source.grad, q.min.grad.clone(), q.max.grad.clone()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-5, atol=1e-4)


def reference(x: Tensor, low: Tensor, high: Tensor, grid: IntegerRange) -> Tensor:
    """The straight-through estimator in primitives that differentiate by themselves."""
    scale = grid.scale(low, high)
    if grid.symmetric:
        zero = torch.full_like(scale, grid.middle)
    else:
        zero = grid.qmin - traced.straight_through_round(low / scale)
    return traced.quantize_dequantize(x, scale, zero, grid.qmin, grid.qmax)


@settings(deadline=None, max_examples=60)
@given(
    grids,
    st.booleans(),
    st.sampled_from([(), (3, 1), (1, 40)]),
    st.integers(0, 2**31),
)
def test_gradients_are_those_of_the_straight_through_estimator(
    grid: tuple[int, int], symmetric: bool, shape: tuple[int, ...], seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    q = affine.QuantizeDequantize(shape, qmin=grid[0], qmax=grid[1], symmetric=symmetric).double()
    q.set_range(-torch.rand(shape, generator=g) - 0.1, torch.rand(shape, generator=g) + 0.1)
    x = torch.randn(3, 40, generator=g).double().requires_grad_()
    weight = torch.randn(3, 40, generator=g).double()
    (q(x) * weight).sum().backward()
    z = x.detach().clone().requires_grad_()
    low, high = (p.detach().clone().requires_grad_() for p in (q.min, q.max))
    (reference(z, low, high, q.grid) * weight).sum().backward()
    assert x.grad is not None
    assert q.min.grad is not None
    assert q.max.grad is not None
    assert torch.equal(x.grad, z.grad)  # type: ignore[arg-type]
    # ranges are float32, so their gradients are
    torch.testing.assert_close(q.min.grad, low.grad, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(q.max.grad, high.grad, rtol=2e-4, atol=2e-4)


@settings(deadline=None, max_examples=30)
@given(grids, st.sampled_from([(), (3, 1)]), st.integers(0, 2**31))
def test_gradients_of_quantize_alone(
    grid: tuple[int, int], shape: tuple[int, ...], seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 40, generator=g).double().requires_grad_()
    scale = (torch.rand(shape, generator=g).double() * 0.01 + 0.001).requires_grad_()
    offset = torch.full(shape, -3.0, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 40, generator=g).double()
    y = affine.quantize(x, scale, offset, qmin=grid[0], qmax=grid[1])
    (y * weight).sum().backward()
    got = (x.grad, scale.grad, offset.grad)
    x.grad = scale.grad = offset.grad = None
    y = traced.quantize(x, scale, -offset, *grid)
    (y * weight).sum().backward()
    for a, b in zip(got, (x.grad, scale.grad, offset.grad), strict=True):
        torch.testing.assert_close(a, b)


def at_the_ends(p: kernels.Affine, dtype: torch.dtype) -> Tensor:
    """The outermost grid points, the ties half a step further, and their neighbours."""
    ends = torch.tensor([p.qmin, p.qmin - 0.5, p.qmin - 1, p.qmax, p.qmax + 0.5, p.qmax + 1])
    x = ((ends[:, None] - p.zero_point.reshape(1, -1)) * p.scale.reshape(1, -1)).to(dtype)
    inf = torch.tensor(torch.inf, dtype=dtype)
    below, above = torch.nextafter(x, -inf), torch.nextafter(x, inf)
    beyond = torch.nextafter(below, -inf), torch.nextafter(above, inf)
    return torch.cat([x, below, above, *beyond])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [(0, 255), (-128, 127), (-7, 7), (0, 65535)])
@pytest.mark.parametrize("form", ["one step", "steps", "integers", "compiled", "compiled integers"])
def test_the_gradient_passes_where_a_value_is_rounded_to_the_grid(
    form: str, grid: tuple[int, int], dtype: torch.dtype
) -> None:
    steps = 1 if form == "one step" else 9
    scale = torch.rand(steps, generator=torch.Generator().manual_seed(0)) * 0.1 + 1e-3
    zero = torch.arange(float(steps)) + sum(grid) // 2 - 3
    p = kernels.affine(scale, zero, *grid, single=form == "one step")
    x = at_the_ends(p, dtype)
    # the definition, in numpy: neither end of the grid clips, ties fall as the rounding says
    integers = np.rint(x.numpy() / scale.to(dtype).numpy()) + zero.to(dtype).numpy()
    want = ((integers >= grid[0]) & (integers <= grid[1])).astype(np.float64)
    x.requires_grad_()
    factors: Factors = IntegerRange(*grid).factors(-scale, scale, scale)
    if form.startswith("compiled"):
        run = traced.quantize if form.endswith("integers") else traced.quantize_dequantize
        y = run(x, scale, zero, *grid)
    else:
        step = kernels.apply_quantize if form == "integers" else kernels.apply
        y = step(x, scale, scale, p, lambda: factors)
    y.sum().backward()
    assert x.grad is not None
    factor = scale.double().numpy() if form.endswith("integers") else 1.0
    np.testing.assert_allclose(x.grad.numpy() * factor, want, rtol=1e-6)
    assert 0 < want.sum() < want.size


def test_a_range_that_begins_at_zero_learns_in_every_form() -> None:
    q = affine.QuantizeDequantize((), 8)
    q.set_range(0.0, 2.0)
    x = torch.tensor([-1.0, 0.3, 5.0])
    slopes = []
    for run in (q, q._traced):
        q.zero_grad()
        (run(x) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        slopes.append((q.min.grad, q.max.grad))
    for eager, compiled in zip(*slopes, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-5, atol=1e-5)
    assert slopes[0][0] is not None
    assert slopes[0][0].item() != 0


@pytest.mark.parametrize("shape", [(), (3, 1)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_end_at_zero_that_clips_nothing_stays_and_the_other_learns(
    shape: tuple[int, ...], sign: float
) -> None:
    q = affine.QuantizeDequantize(shape, 3)
    q.set_range(min(0.0, 2.0 * sign), max(0.0, 2.0 * sign))
    torch.manual_seed(0)
    x, g = torch.rand(3, 50) * 2.5 * sign, torch.randn(3, 50)
    x[0, 0] = -0.1 * sign  # rounds to zero, which clips nothing
    still, moving = (q.min, q.max) if sign > 0 else (q.max, q.min)
    slopes = []
    for run in (q, q._traced):
        q.zero_grad()
        (run(x) * g).sum().backward()
        assert still.grad is not None
        assert not still.grad.any()
        slopes.append(moving.grad)
    # the width is the end that moves: d y / d end = y / end where clipped, (y - x) / end elsewhere
    y, end = q(x).detach().as_subclass(torch.Tensor), 2.0 * sign
    clipped = (x / end * 7).round() > 7
    want = (g * torch.where(clipped, y, y - x) / end).sum_to_size(shape)
    for slope in slopes:
        torch.testing.assert_close(slope, want, rtol=1e-4, atol=1e-5)


def test_functional_form_has_gradients_for_scale_and_offset() -> None:
    x = torch.randn(50).double().requires_grad_()
    scale = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    offset = torch.tensor(-7.0, dtype=torch.float64, requires_grad=True)
    y = affine.quantize_dequantize(x, scale, offset, bitwidth=6)
    y.square().sum().backward()
    got = (x.grad, scale.grad, offset.grad)
    x.grad = scale.grad = offset.grad = None
    traced.quantize_dequantize(x, scale, -offset, 0, 63).square().sum().backward()
    for a, b in zip(got, (x.grad, scale.grad, offset.grad), strict=True):
        torch.testing.assert_close(a, b)


def test_functional_spellings_of_the_grid() -> None:
    x, scale, zero = torch.tensor([-0.6, 0.6, 9.0]), torch.tensor(0.1), torch.tensor(0.0)
    assert affine.quantize(x, scale, zero, num_steps=15).tolist() == [0, 6, 15]
    assert affine.quantize(x, scale, zero, bitwidth=4).tolist() == [0, 6, 15]
    assert affine.quantize(x, scale, zero, bitwidth=4, signed=True).tolist() == [-6, 6, 7]
    assert affine.quantize(x, scale, zero, qmin=-4, qmax=4).tolist() == [-4, 4, 4]
    blocks = affine.quantize(
        torch.ones(2, 4), torch.tensor([[1.0, 0.5]] * 2), torch.zeros(2, 2), 8, block_size=(1, 2)
    )
    assert blocks.tolist() == [[1, 1, 2, 2]] * 2
    assert affine.dequantize(blocks, torch.tensor(0.5), zero).tolist() == [[0.5, 0.5, 1, 1]] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    q = affine.QuantizeDequantize((), 8)
    q.set_range(-1.0, 2.0)
    x = torch.randn(1000).to(dtype).requires_grad_()
    y = q(x)
    assert y.dtype is dtype
    assert torch.equal(y, q(x.float()).to(dtype))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype is dtype
    assert q.min.dtype is torch.float32


def test_second_sums_are_skipped_for_symmetric_grids() -> None:
    symmetric = IntegerRange(-128, 127, True)
    one = torch.ones(())
    factors: Factors = symmetric.factors(-one, one, symmetric.scale(-one, one))
    assert not factors.use_outside
    assert IntegerRange(0, 255).factors(-one, one, one / 100).use_outside


def test_the_first_clipped_value_of_steps_that_are_no_numbers() -> None:
    """Nothing is divided by a step of zero or infinity; a range not known yet clips nothing."""
    for kind in (np.float32, np.float64):
        assert surrogate._beyond(3.0, 0.0, kind) == 0.0
        assert surrogate._beyond(0.0, np.inf, kind) == np.inf
        assert surrogate._beyond(3.0, np.inf, kind) == np.inf
        assert np.isnan(surrogate._beyond(3.0, np.nan, kind))
        # half a step beyond the last one is a tie, which goes to the even of both
        assert surrogate._beyond(3.0, 2.0, kind) == 7.0
        assert surrogate._beyond(4.0, 2.0, kind) == np.nextafter(kind(9.0), kind(10.0))
