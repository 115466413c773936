"""Ranges that follow a parameter while it is trained."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxquant.quantization import QuantScheme, affine
from fxquant.quantization.affine import AffineQuantizer
from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize

seeds = st.integers(0, 2**16)


def following(weight: Tensor, scheme: str = "min_max", **grid: Any) -> AffineQuantizer:
    options: dict[str, Any] = {"shape": (weight.shape[0], 1), "bitwidth": 8, "symmetric": True}
    analyzer = QuantScheme(scheme).analyzer()
    q: AffineQuantizer = affine.QuantizeDequantize(
        **{**options, **grid}, encoding_analyzer=analyzer
    )
    q.follows = True
    q.requires_grad_(requires_grad=False)
    with q.compute_encodings():
        q(weight)
    return q


def ends(q: AffineQuantizer) -> tuple[Tensor, Tensor]:
    return q.min.detach().clone(), q.max.detach().clone()


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@given(seeds, st.booleans())
def test_the_range_of_min_max_is_what_min_max_would_find(seed: int, symmetric: bool) -> None:
    torch.manual_seed(seed)
    first, then = torch.randn(4, 9), torch.randn(4, 9) * torch.rand(4, 1) * 3
    q = following(first, symmetric=symmetric)
    q.follow(first)
    q.follow(then)
    assert same(ends(q), ends(following(then, symmetric=symmetric)))


@pytest.mark.parametrize("scheme", ["min_max", "tf_enhanced", "mse", "percentile"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_first_look_changes_nothing(scheme: str, symmetric: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 99)
    q = following(weight, scheme, symmetric=symmetric)
    before = ends(q)
    for _ in range(3):
        q.follow(weight)
        assert same(ends(q), before)


def test_a_range_within_the_extremes_keeps_its_proportion() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 999)
    q = following(weight, "tf_enhanced", bitwidth=4)
    peak = weight.abs().amax(1, keepdim=True)
    share = q.max.detach() / peak
    assert bool((share < 0.9).all())
    q.follow(weight)
    q.follow(weight * 2)
    # proportions have twelve bits
    torch.testing.assert_close(q.max.detach() / 2, share * peak, rtol=2**-12, atol=0)


@given(seeds)
def test_going_on_from_a_stored_range_gives_the_same_bits(seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(3, 40)
    q = following(weight, "tf_enhanced", bitwidth=4)
    for _ in range(3):
        q.follow(weight)
        weight = weight + torch.randn(3, 40) * 0.1
    q.follow(weight)
    resumed = following(weight, "tf_enhanced", bitwidth=4)
    resumed.load_state_dict(q.state_dict())
    resumed.follow(weight)
    later = weight + torch.randn(3, 40) * 0.1
    q.follow(later)
    resumed.follow(later)
    assert same(ends(q), ends(resumed))


def test_what_is_set_by_hand_is_the_new_proportion() -> None:
    weight = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    q = following(weight)
    q.follow(weight)
    q.set_range(-4.0, 4.0)
    q.follow(weight)
    assert q.max.flatten().tolist() == [4.0, 4.0]
    q.follow(weight * 2)
    assert q.max.flatten().tolist() == [8.0, 8.0]


def test_channels_of_zeros_get_the_range_of_what_they_become() -> None:
    weight = torch.tensor([[0.0, 0.0], [2.0, -1.0]])
    q = following(weight)
    q.follow(weight)
    later = torch.tensor([[0.5, -0.25], [2.0, -1.0]])
    q.follow(later)
    assert same(ends(q), ends(following(later)))


def test_frozen_learned_and_foreign_ranges_do_not_follow() -> None:
    weight = torch.randn(2, 4)
    for change in (
        lambda q: q.allow_overwrite(False),
        lambda q: q.requires_grad_(),
        lambda q: setattr(q, "follows", False),
    ):
        q = following(weight)
        change(q)
        before = ends(q)
        q.follow(weight)
        q.follow(weight * 2)
        assert same(ends(q), before)


def test_nothing_happens_before_training_began() -> None:
    weight = torch.randn(2, 4)
    q = following(weight)
    before = ends(q)
    q.follow(weight * 2, begin=False)
    assert same(ends(q), before)
    q.follow(weight)
    q.follow(weight * 2, begin=False)
    assert not same(ends(q), before)


def test_copies_go_on() -> None:
    weight = torch.randn(2, 4)
    q = following(weight)
    q.follow(weight)
    twin = copy.deepcopy(q)
    twin.follow(weight * 2, begin=False)
    assert torch.equal(twin.max, q.max * 2)


def test_powers_of_two_follow_by_whole_positions() -> None:
    weight = torch.tensor([[1.0, -0.5]])
    q = PowerOfTwoQuantizeDequantize((1, 1), 8)
    q.follows = True
    q.requires_grad_(requires_grad=False)
    with q.compute_encodings():
        q(weight)
    before = q.get_scale()
    q.follow(weight)
    q.follow(weight * 4)
    assert before is not None
    assert torch.equal(q.get_scale(), before * 4)  # type: ignore[arg-type]


def test_blocks_follow() -> None:
    weight = torch.randn(2, 8)
    q = following(weight, shape=(2, 2), block_size=(1, 4))
    q.follow(weight)
    q.follow(weight * 2)
    assert same(ends(q), ends(following(weight * 2, shape=(2, 2), block_size=(1, 4))))


def test_an_uncalibrated_quantizer_stays_uncalibrated() -> None:
    q = affine.QuantizeDequantize(shape=(), bitwidth=8, symmetric=True)
    q.follows = True
    q.requires_grad_(requires_grad=False)
    q.follow(torch.ones(3))
    assert not q.is_initialized()


def test_half_precision_parameters() -> None:
    weight = nn.Parameter(torch.randn(2, 4).bfloat16())
    q = following(weight.detach())
    q.follow(weight)
    q.follow(weight * 2)
    assert torch.equal(q.max, following(weight.detach() * 2).max)
