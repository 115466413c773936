"""Ranges from observed data: exact, bounded, and independent of the order of the batches."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fxquant.quantization as Q
from fxquant.errors import QuantizationError
from fxquant.quantization.analyzers import (
    EncodingAnalyzer,
    Entropy,
    Histogram,
    MinMax,
    MovingAverage,
    Mse,
    Percentile,
    Sqnr,
)
from fxquant.quantization.analyzers.entropy import divergence
from fxquant.quantization.layout import Layout
from fxquant.quantization.range_to_qparams import IntegerRange

ANALYZERS: list[EncodingAnalyzer] = [
    MinMax(),
    Percentile(99.9),
    Sqnr(),
    Mse(),
    Entropy(),
    MovingAverage(0.1),
]
MERGEABLE = [a for a in ANALYZERS if not isinstance(a, MovingAverage)]


def seen(layout: Layout, batches: list[Tensor], bins: int = 64) -> Histogram:
    histogram = Histogram(layout, bins)
    for x in batches:
        histogram.update(x, *layout.extremes(x))
    return histogram


def equal(a: Histogram, b: Histogram) -> bool:
    names = ("counts", "first", "exponent", "low", "high")
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def batches_of(seed: int, count: int, *size: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    scales = 10.0 ** (torch.rand(count, generator=g) * 8 - 4)
    return [
        torch.randn(size, generator=g) * s + (s if i % 3 else 0.0) for i, s in enumerate(scales)
    ]


# all of 24 elements: the last axis, the first, one between, and blocks
PLACES: list[tuple[tuple[int, ...], Layout]] = [
    ((3, 8), Layout()),
    ((3, 8), Layout((3, 1))),
    ((3, 8), Layout((1, 8))),
    ((3, 4, 2), Layout((4, 1))),
    ((2, 3, 4), Layout((1, 3, 1))),
    ((3, 8), Layout((3, 2), (1, 4))),
    ((2, 3, 4), Layout((3, 2), (-1, 2))),
]


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from(PLACES))
def test_order_and_cuts_of_the_data_do_not_matter(
    seed: int, count: int, place: tuple[tuple[int, ...], Layout]
) -> None:
    size, layout = place
    batches = batches_of(seed, count, *size)
    whole = seen(layout, batches)
    shuffled = random.Random(seed).sample(batches, len(batches))
    assert equal(whole, seen(layout, shuffled))
    merged = seen(layout, batches[: count // 2])
    merged.merge(seen(layout, batches[count // 2 :]))
    assert equal(whole, merged)
    assert int(whole.counts.sum()) == 24 * count


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([0, 1]))
def test_counts_are_those_of_numpy(seed: int, axis: int) -> None:
    shape = (3, 1) if axis == 0 else (1, 8)
    batches = batches_of(seed, 4, 3, 8)
    histogram = seen(Layout(shape), batches)
    rows = torch.cat([b.movedim(axis, 0) for b in batches], 1).double()
    for row, values in enumerate(rows):
        width, first = float(histogram.width[row]), int(histogram.first[row])
        numbers = np.floor(values.numpy() / width).astype(int) - first
        want = np.bincount(numbers, minlength=histogram.bins)
        assert histogram.counts[row].tolist() == want.tolist()
        # no bin is wider than it must be
        span = max(values.max().item(), 0.0) - min(values.min().item(), 0.0)
        assert span > width * (histogram.bins - 2) / 2


def test_extreme_values_fit() -> None:
    for x in (
        torch.zeros(5),
        torch.tensor([1e-44, 0.0]),
        torch.tensor([3e38, -3e38]),
        torch.tensor([-1e-30]),
        torch.tensor([5.0]),
    ):
        histogram = seen(Layout(), [x, torch.zeros(3), x])
        assert int(histogram.counts.sum()) == 2 * len(x) + 3


def test_memory_does_not_grow_with_the_data() -> None:
    histogram = Histogram(Layout((4, 1)), 128)
    for x in batches_of(0, 30, 4, 100):
        histogram.update(x, *Layout((4, 1)).extremes(x))
        assert histogram.counts.shape == (4, 128)


@pytest.mark.parametrize("analyzer", ANALYZERS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_channels_do_not_mix(analyzer: EncodingAnalyzer, axis: int) -> None:
    shape = [1, 1, 1]
    shape[axis] = 3
    scales = torch.tensor([1.0, 100.0, 10000.0]).reshape(shape)
    together = Q.affine.QuantizeDequantize(shape, 8, True, analyzer)
    apart = [
        Q.affine.QuantizeDequantize((1, 1, 1), 8, True, _per_channel(analyzer)) for _ in range(3)
    ]
    batches = [torch.randn(3, 3, 3) * scales for _ in range(4)]
    with together.compute_encodings():
        for x in batches:
            together(x)
    for number, q in enumerate(apart):
        with q.compute_encodings():
            for x in batches:
                q(x.movedim(axis, 0)[number])
        assert torch.equal(q.max.flatten(), together.max.flatten()[number : number + 1])


def _per_channel(analyzer: EncodingAnalyzer) -> EncodingAnalyzer:
    # a tensor with one range has finer bins unless told otherwise
    if isinstance(analyzer, Sqnr | Entropy):
        return replace(analyzer, bins=analyzer.channel_bins)
    return analyzer


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_relative_counts_merge_exactly_in_any_order(seed: int, count: int) -> None:
    def relative(batches: list[Tensor]) -> Histogram:
        histogram = Histogram(Layout(), 64, relative=True)
        for x in batches:
            histogram.update(x, *Layout().extremes(x))
        return histogram

    batches = batches_of(seed, count, 2, 3, 8)
    whole = relative(batches)
    assert equal(whole, relative(random.Random(seed).sample(batches, count)))
    merged = Histogram(Layout(), 64, relative=True)
    merged.load(relative(batches[: count // 2]).state())
    merged.merge(relative(batches[count // 2 :]))
    assert equal(whole, merged)


@torch.no_grad()
def test_relative_ranges_serve_the_many_rows_beside_a_strong_one() -> None:
    x = torch.randn(4, 50, 32)
    x[:, 0] *= 40.0
    x[:, 1] = 0.0  # a row without values has no say
    chosen = {}
    for relative in (False, True):
        q = Q.affine.QuantizeDequantize((), 8, encoding_analyzer=Sqnr(relative=relative))
        with q.compute_encodings():
            for part in x:
                q(part)
        chosen[relative] = (q.min.item(), q.max.item())

    def loss(low: float, high: float) -> float:
        """What clipped values count three times for, relative to their rows."""
        q = Q.affine.QuantizeDequantize((), 8)
        q.set_range(low, high)
        error = (q(x) - x).square()
        grid = q.get_encodings()
        assert grid is not None
        inside = (x >= grid.min) & (x <= grid.max)
        rows = torch.where(inside, error, 3 * error).mean(-1) / x.square().mean(-1)
        return float(rows[:, [0, *range(2, 50)]].mean())

    shares = torch.arange(1, 25) / 24
    best = min(loss(float(x.min() * a), float(x.max() * b)) for a in shares for b in shares)
    assert loss(*chosen[True]) < 1.05 * best  # a bin is a third of a step wide
    assert loss(*chosen[False]) > 2 * best


@pytest.mark.parametrize("share", [50.0, 90.0, 99.0, 99.9, 100.0])
def test_percentiles_are_those_of_numpy_up_to_a_bin(share: float) -> None:
    x = torch.randn(20000).exp() - 1.0
    q = Q.affine.QuantizeDequantize((), 8, encoding_analyzer=Percentile(share))
    with q.compute_encodings():
        for part in x.split(3000):
            q(part)
    bin_width = float(x.max() - x.min()) / 1000
    assert q.max.item() == pytest.approx(
        max(np.percentile(x, share, method="inverted_cdf"), 0.0), abs=bin_width
    )
    assert q.min.item() == pytest.approx(
        min(np.percentile(x, 100 - share, method="inverted_cdf"), 0.0), abs=bin_width
    )


def test_hundred_per_cent_is_min_max() -> None:
    x = torch.randn(1000)
    q = Q.affine.QuantizeDequantize((), 8, encoding_analyzer=Percentile(100))
    with q.compute_encodings():
        q(x)
    assert q.min.item() == float(x.min())
    assert q.max.item() == float(x.max())


@pytest.mark.parametrize("share", [49.9, 100.1])
def test_impossible_percentiles_are_refused(share: float) -> None:
    with pytest.raises(QuantizationError, match="FXQ415"):
        Percentile(share)


def noise(x: Tensor, q: Q.affine.QuantizeDequantize) -> float:
    return float((q(x) - x).square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["normal", "heavy", "relu", "negative"])
def test_sqnr_is_close_to_the_best_of_all_ranges(bits: int, symmetric: bool, kind: str) -> None:
    x = torch.randn(20000)
    if kind == "heavy":
        x = x * torch.rand(20000).reciprocal().clamp(max=30).sqrt()
    x = x.relu() if kind == "relu" else -x.abs() if kind == "negative" else x
    q = Q.affine.QuantizeDequantize((), bits, symmetric, Sqnr(gamma=1.0))
    with q.compute_encodings():
        for part in x.split(3000):
            q(part)
    with torch.no_grad():
        found = noise(x, q)
        low, high = float(x.min()), float(x.max())
        best = torch.inf
        for share in np.linspace(0.02, 1.0, 99):
            q.set_range(min(low * share, 0.0), max(high * share, 0.0))
            best = min(best, noise(x, q))
    assert found <= best * 1.1


def test_clipping_counts_more_with_gamma() -> None:
    x = torch.randn(20000)
    ranges = []
    for gamma in (1.0, 3.0, 30.0):
        q = Q.affine.QuantizeDequantize((), 4, encoding_analyzer=Sqnr(gamma=gamma))
        with q.compute_encodings():
            q(x)
        ranges.append((q.max - q.min).item())
    assert ranges == sorted(ranges)
    assert ranges[0] < ranges[-1]


def test_analyzers_share_nothing_between_quantizers() -> None:
    analyzer = Sqnr()
    first, second = (Q.affine.QuantizeDequantize((), 8, encoding_analyzer=analyzer) for _ in "ab")
    with first.compute_encodings(), second.compute_encodings():
        first(torch.tensor([1.0, -1.0]))
        second(torch.tensor([9.0, -9.0]))
    assert first.max.item() < 2.0
    assert second.max.item() > 2.0


@pytest.mark.parametrize("analyzer", ANALYZERS)
def test_statistics_of_another_analyzer_give_no_range(analyzer: EncodingAnalyzer) -> None:
    class Other:
        def update(self, x: Tensor, low: Tensor, high: Tensor) -> None:
            """Nothing."""

    assert analyzer.range(Other(), IntegerRange(0, 255)) is None
    assert analyzer.range(analyzer.start(Layout()), IntegerRange(0, 255)) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tf", MinMax),
        ("min_max", MinMax),
        ("post_training_tf", MinMax),
        ("tf_enhanced", Sqnr),
        ("percentile", Percentile),
        ("mse", Mse),
        ("post_training_mse", Mse),
        ("entropy", Entropy),
        ("KL", Entropy),
        ("moving_average", MovingAverage),
        ("training_range_learning_with_tf_init", MinMax),
        ("training_range_learning_with_tf_enhanced_init", Sqnr),
    ],
)
def test_schemes_by_name(name: str, kind: type) -> None:
    assert type(Q.analyzer_for(name)) is kind
    assert type(Q.QuantScheme(name).analyzer()) is kind


@pytest.mark.parametrize("scheme", Q.QuantScheme)
def test_every_scheme_has_an_analyzer_and_a_name(scheme: Q.QuantScheme) -> None:
    assert scheme.analyzer() == Q.analyzer_for(scheme.value)
    assert Q.QuantScheme(scheme.name) is scheme


def test_scheme_names_are_aliases() -> None:
    assert Q.QuantScheme("post_training_tf") is Q.QuantScheme["min_max"]
    assert Q.QuantScheme["post_training_tf"] is Q.QuantScheme["min_max"]
    assert Q.analyzer_for("percentile", percentile=99.0) == Percentile(99.0)
    with pytest.raises(QuantizationError, match=r"(?s)FXQ416.*tf_enhanced"):
        Q.QuantScheme("tf_enhance")


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(2, 6), st.sampled_from(PLACES))
@pytest.mark.parametrize("analyzer", MERGEABLE)
def test_merged_shards_give_the_range_of_one_pass(
    analyzer: EncodingAnalyzer, seed: int, count: int, place: tuple[tuple[int, ...], Layout]
) -> None:
    (size, layout), grid = place, IntegerRange(0, 15)
    batches = batches_of(seed, count, *size)

    def statistics(shard: list[Tensor]) -> Any:
        found = analyzer.start(layout)
        for x in shard:
            found.update(x, *layout.extremes(x))
        return found

    want = analyzer.range(statistics(batches), grid)
    assert want is not None
    rng = random.Random(seed)
    shards = [statistics([x]) for x in rng.sample(batches, count)]
    while len(shards) > 1:  # any tree of merges
        a, b = rng.sample(range(len(shards)), 2)
        shards[a].merge(shards[b])
        del shards[b]
    got = analyzer.range(shards[0], grid)
    assert got is not None
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("analyzer", MERGEABLE)
def test_merging_with_nothing_changes_nothing(analyzer: EncodingAnalyzer) -> None:
    layout, grid, x = Layout(), IntegerRange(0, 255), torch.randn(100)
    seen_one: Any = analyzer.start(layout)
    seen_one.update(x, *layout.extremes(x))
    want = analyzer.range(seen_one, grid)
    seen_one.merge(analyzer.start(layout))
    empty: Any = analyzer.start(layout)
    empty.merge(seen_one)
    for statistics in (seen_one, empty):
        got = analyzer.range(statistics, grid)
        assert got is not None
        assert want is not None
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_quantizers_of_shards_are_merged_before_they_leave() -> None:
    first, second, whole = (
        Q.affine.QuantizeDequantize((), 4, encoding_analyzer=Mse()) for _ in range(3)
    )
    a, b = torch.randn(500), 3 * torch.randn(500)
    assert first.statistics is None
    with first.compute_encodings(), second.compute_encodings():
        first(a)
        second(b)
        first.statistics.merge(second.statistics)  # type: ignore[attr-defined]
    with whole.compute_encodings():
        whole(b)
        whole(a)
    assert torch.equal(first.min, whole.min)
    assert torch.equal(first.max, whole.max)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_beats_what_weighs_clipping_more(bits: int, symmetric: bool) -> None:
    x = torch.randn(20000)
    errors = []
    for analyzer in (Mse(), Sqnr(), MinMax()):
        q = Q.affine.QuantizeDequantize((), bits, symmetric, analyzer)
        with q.compute_encodings():
            q(x)
        with torch.no_grad():
            errors.append(noise(x, q))
    assert errors[0] <= errors[1] * 1.01
    assert errors[1] <= errors[2] * 1.01


def test_entropy_is_that_of_the_formula() -> None:
    """Against loops that follow the definition."""
    grid, counts = IntegerRange(0, 7), torch.randint(0, 50, (40,)).double()
    counts[5] = counts[17] = 0
    middles = (torch.arange(40) + 0.5).double() * 0.25 - 3.0
    ends = torch.tensor([-3.0, -2.0, -1.0, 0.0]), torch.tensor([7.0, 5.0, 2.0, 1.0])
    found = divergence(counts, middles, ends, grid)
    for k in range(4):
        scale = grid.scale(ends[0][k], ends[1][k])
        zero = float(grid.zero_point(ends[0][k], scale))
        integers = [round(float(m) / float(scale)) + int(zero) for m in middles]
        inside = [i for i, q in enumerate(integers) if 0 <= q <= 7 and counts[i] > 0]
        p = {i: float(counts[i]) for i in inside}
        spread: dict[int, float] = {}
        for q in {integers[i] for i in inside}:
            group = [i for i in inside if integers[i] == q]
            spread |= dict.fromkeys(group, sum(p[i] for i in group) / len(group))
        p[inside[0]] += float(counts[: inside[0]].sum())
        p[inside[-1]] += float(counts[inside[-1] + 1 :].sum())
        total, left = sum(p.values()), sum(spread.values())
        terms = [v / total * math.log(v / total / (spread[i] / left)) for i, v in p.items()]
        assert float(found[k]) == pytest.approx(sum(terms), rel=1e-9)


def test_entropy_clips_few_outliers_of_many_values() -> None:
    x = torch.cat([torch.randn(50000), torch.tensor([40.0, -35.0])])
    for bits, symmetric in ((8, True), (8, False), (4, True)):
        q = Q.affine.QuantizeDequantize((), bits, symmetric, Entropy())
        with q.compute_encodings():
            q(x)
        assert 2.0 < q.max.item() < 20.0
        # one of the 96 ranges that are tried from the whole one down to a twentieth of it
        shares = torch.linspace(1.0, 0.05, 96, dtype=torch.float64)
        assert q.max.item() in (40.0 * shares).float().tolist()
    # a grid finer than the histogram has nothing to win
    wide = Q.affine.QuantizeDequantize((), 16, encoding_analyzer=Entropy())
    with wide.compute_encodings():
        wide(x)
    assert wide.max.item() == 40.0


def test_a_moving_average_is_the_recurrence_and_forgets() -> None:
    q = Q.affine.QuantizeDequantize((2, 1), 8, encoding_analyzer=MovingAverage(0.25))
    batches = [torch.randn(2, 9) * (1 + i) for i in range(5)]
    with q.compute_encodings():
        for x in batches:
            q(x)
    low, high = (f(batches[0], 1, True) for f in (torch.amin, torch.amax))
    for x in batches[1:]:
        low = 0.75 * low + 0.25 * x.amin(1, True)
        high = 0.75 * high + 0.25 * x.amax(1, True)
    torch.testing.assert_close(q.min.detach(), low)
    torch.testing.assert_close(q.max.detach(), high)
    assert not hasattr(MovingAverage().start(Layout()), "merge")
    for share in (0.0, 1.5):
        with pytest.raises(QuantizationError, match="FXQ434"):
            MovingAverage(share)


@pytest.mark.parametrize("bits", [4, 8])
def test_nothing_but_zeros_has_a_relative_range(bits: int) -> None:
    histogram = Histogram(Layout(), 64, relative=True)
    histogram.update(torch.zeros(5, 8), torch.zeros(1), torch.zeros(1))
    found = Sqnr(relative=True).range(histogram, IntegerRange(0, 2**bits - 1))
    assert found is not None
    assert [float(end) for end in found] == [0.0, 0.0]
