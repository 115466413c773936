"""The search of ranges tries few candidates and finds what trying all of them finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.quantization.analyzers import Mse, Sqnr
from fxquant.quantization.analyzers import histogram as histograms
from fxquant.quantization.analyzers import sqnr as search
from fxquant.quantization.analyzers.tails import Tails
from fxquant.quantization.layout import Layout
from fxquant.quantization.range_to_qparams import IntegerRange

if TYPE_CHECKING:
    from torch import Tensor

    from fxquant.quantization.analyzers.histogram import Histogram

KINDS = ("normal", "heavy", "relu", "negative", "outlier", "few", "constant", "zeros")


def values(kind: str, rows: int, count: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, count, generator=g) * 10.0 ** (4 * torch.rand(rows, 1, generator=g) - 2)
    if kind == "heavy":
        x = x * torch.rand(rows, count, generator=g).reciprocal().clamp(max=100).sqrt()
    if kind == "outlier":
        x[:, 0] *= 30
    if kind == "few":  # many candidates are equally good
        x = (x.sign() * (1 + torch.randint(0, 3, x.shape, generator=g))).float()
    if kind in ("constant", "zeros"):
        x = torch.full_like(x, float(seed % 7) - 3.0 if kind == "constant" else 0.0)
    return x.relu() if kind == "relu" else -x.abs() if kind == "negative" else x


def exhaustive(
    analyzer: Sqnr, seen: Histogram, ends: tuple[Tensor, Tensor], grid: IntegerRange
) -> tuple[Tensor, Tensor]:
    """Errors of all candidates over all bins, summed in float64 and in float32: `[R, K]` twice."""
    low, high = (e.float() for e in ends)
    scale = grid.scale(low, high)
    zero = grid.zero_point(low, scale).unsqueeze(2)
    steps = seen.middles.float().unsqueeze(1) / scale.unsqueeze(2)
    error = torch.round(steps).clamp(grid.qmin - zero, grid.qmax - zero) - steps
    clipped = F.hardshrink(error, 0.5)
    error.square_().addcmul_(clipped, clipped, value=analyzer.gamma - 1.0)
    precise = (error.double() @ seen.counts.double().unsqueeze(2)).squeeze(2)
    coarse = (error @ seen.counts.float().unsqueeze(2)).squeeze(2)
    return precise * scale.double().square(), coarse * scale.square()


def all_candidates(analyzer: Sqnr, seen: Histogram, grid: IntegerRange) -> tuple[Tensor, Tensor]:
    """Ends of all candidates, the whole range first: `[R, K]` twice."""
    low, high = seen.low.clamp(max=0.0), seen.high.clamp(min=0.0)
    one_end = grid.symmetric or not bool(((low < 0) & (high > 0)).any())
    count = analyzer.candidates if one_end else analyzer.pairs
    shares = torch.arange(count, 0, -1, dtype=torch.float64) / count
    pairs = torch.stack([shares, shares], 1) if one_end else torch.cartesian_prod(shares, shares)
    return low[:, None] * pairs[:, 0], high[:, None] * pairs[:, 1]


def seen_by(analyzer: Sqnr, x: Tensor) -> Histogram:
    layout = Layout((len(x), 1)) if len(x) > 1 else Layout()
    histogram = analyzer.start(layout)
    histogram.update(x, *layout.extremes(x))
    return histogram


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**31),
    st.sampled_from(KINDS),
    st.sampled_from([(1, 800), (5, 9), (15, 100)]),
    st.sampled_from([2, 3, 4, 8, 12, 16]),
    st.booleans(),
    st.sampled_from([Sqnr(), Mse(), Sqnr(gamma=30.0), Mse(pairs=5, candidates=7)]),
)
def test_no_candidate_is_better(
    seed: int, kind: str, size: tuple[int, int], bits: int, symmetric: bool, analyzer: Sqnr
) -> None:
    grid = IntegerRange.of_bits(bits, signed=symmetric, symmetric=symmetric)
    seen = seen_by(analyzer, values(kind, *size, seed))
    found = analyzer.range(seen, grid)
    assert found is not None
    ends = all_candidates(analyzer, seen, grid)
    precise, coarse = exhaustive(analyzer, seen, ends, grid)
    chosen, _ = exhaustive(analyzer, seen, (found[0].reshape(-1, 1), found[1].reshape(-1, 1)), grid)
    # sums of positive float64 numbers in two orders
    assert bool((chosen[:, 0] <= precise.amin(1) * (1 + 1e-12)).all())
    # nor the one that sums of float32 call the best
    best = coarse.argmin(1, keepdim=True)
    assert bool((chosen <= precise.gather(1, best) * (1 + 1e-12)).all())


@pytest.mark.parametrize("symmetric", [False, True])
def test_of_equals_the_widest_is_taken(symmetric: bool) -> None:
    grid = IntegerRange.of_bits(8, signed=symmetric, symmetric=symmetric)
    for x in (torch.zeros(3, 4), torch.zeros(1, 9)):
        found = Sqnr().range(seen_by(Sqnr(), x), grid)
        assert found is not None
        assert not found[0].any()
        assert not found[1].any()
    # infinite errors of all candidates
    seen = seen_by(Sqnr(), torch.tensor([[3e38, -3e38, 3e38], [-1.0, 1.0, 0.5]]))
    found = Sqnr().range(seen, grid)
    assert found is not None
    assert found[1][0].item() == torch.tensor(3e38).item()
    assert 0.9 < found[1][1].item() <= 1.0


@pytest.mark.parametrize(("bits", "most", "pairs"), [(8, 8.0, 100), (4, 50.0, 500)])
def test_few_candidates_are_tried(
    bits: int, most: float, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    whole = search._Error._of

    def count(
        self: search._Error, middles: Tensor, counts: Tensor | None, scale: Tensor, zero: Tensor
    ) -> Tensor:
        tried.append(len(scale))
        return whole(self, middles, counts, scale, zero)

    monkeypatch.setattr(search._Error, "_of", count)
    seen = seen_by(Sqnr(), values("normal", 200, 300, 0))
    Sqnr().range(seen, IntegerRange.of_bits(bits, signed=True, symmetric=True))
    assert 1 <= sum(tried) / 200 <= most  # of 100
    tried.clear()
    seen = seen_by(Mse(), values("normal", 1, 60000, 0))
    Mse().range(seen, IntegerRange.of_bits(bits, signed=False, symmetric=False))
    assert 1 <= sum(tried) <= pairs  # of 1024


@pytest.mark.parametrize("kind", ["normal", "few", "relu"])
def test_pieces_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, grid = values(kind, 9, 50, 1), IntegerRange(-8, 7, symmetric=True)
    whole = seen_by(Sqnr(), x)
    want = Sqnr().range(whole, grid)
    monkeypatch.setattr(histograms, "_TABLE", 1100)
    monkeypatch.setattr(histograms, "_CHUNK", 30)
    monkeypatch.setattr(search, "_ROWS", 1100)
    monkeypatch.setattr(search, "_AT_ONCE", 100)
    cut = seen_by(Sqnr(), x)
    assert torch.equal(cut.counts, whole.counts)
    got = Sqnr().range(cut, grid)
    assert want is not None
    assert got is not None
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_occupied_bins_are_packed(kind: str) -> None:
    seen = seen_by(Sqnr(), values(kind, 7, 60, 2))
    packed = [seen.occupied(slice(1, 6))]
    assert seen.counts.sum() == 7 * 60  # from here on the counts are there
    packed.append(seen.occupied(slice(1, 6)))
    for bins in packed:
        assert torch.equal(bins.total, torch.full((5, 1), 60.0, dtype=torch.float64))
        for row, size in enumerate(bins.sizes[:, 0].tolist()):
            held = seen.counts[row + 1] > 0
            assert bins.counts is not None
            assert torch.equal(bins.middles[row, :size], seen.middles[row + 1][held].float())
            assert torch.equal(bins.counts[row, :size], seen.counts[row + 1][held].double())
            assert not bins.counts[row, size:].any()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**31),
    st.sampled_from(KINDS),
    st.sampled_from([(1, 800), (5, 9)]),
    st.sampled_from([2, 4, 8, 16, 24]),
    st.booleans(),
)
def test_what_is_clipped_bounds_the_error(
    seed: int, kind: str, size: tuple[int, int], bits: int, symmetric: bool
) -> None:
    grid = IntegerRange.of_bits(bits, signed=symmetric, symmetric=symmetric)
    seen = seen_by(Sqnr(), values(kind, *size, seed))
    ends = all_candidates(Sqnr(), seen, grid)
    precise, _ = exhaustive(Sqnr(), seen, ends, grid)
    scale = grid.scale(*(e.float() for e in ends))
    zero = grid.zero_point(ends[0].float(), scale)
    whole = seen_by(Sqnr(), values(kind, *size, seed)).elements(slice(None))
    assert (whole is None) == (size[0] == 1)
    if whole is not None:
        assert bool((Tails(whole, grid, 3.0).least_error(scale, zero) <= precise).all())
    bound = Tails(seen.occupied(slice(None)), grid, 3.0).least_error(scale, zero)
    assert bool((bound <= precise).all())
    if bits == 4 and kind == "normal" and symmetric:  # and is more than nothing
        assert bool((bound[:, 50] > 0.1 * precise[:, 50]).all())


@pytest.mark.parametrize("bits", [4, 8])
def test_statistics_of_one_tensor_are_those_of_its_parts(bits: int) -> None:
    x = values("heavy", 9, 60, 5)
    whole, parts, merged = (Sqnr().start(Layout((9, 1))) for _ in range(3))
    layout = Layout((9, 1))
    whole.update(x, *layout.extremes(x))
    for part in (x[:, :7], x[:, 7:]):
        parts.update(part, *layout.extremes(part))
        one = Sqnr().start(layout)
        one.update(part, *layout.extremes(part))
        merged.merge(one)
    grid = IntegerRange.of_bits(bits, signed=True, symmetric=True)
    want = Sqnr().range(whole, grid)  # before anybody asks for its counts
    assert want is not None
    for seen in (parts, merged, whole):
        assert torch.equal(seen.counts, whole.counts)
        got = Sqnr().range(seen, grid)
        assert got is not None
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
