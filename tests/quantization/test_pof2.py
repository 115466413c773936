"""Powers of two: the documented search on its golden values, and rounding modes at ties."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import QuantizationError
from fxquant.quantization.affine.pof2 import (
    PowerOfTwo,
    PowerOfTwoQuantizeDequantize,
    coarsest_position,
    position_of,
    range_at,
)
from fxquant.quantization.affine.pof2_rounding import (
    ROUND_MODES,
    RoundedEncoding,
    RoundingQuantizeDequantize,
    round_by,
)
from fxquant.quantization.range_to_qparams import IntegerRange

_TIES = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])


def position(x: Tensor, *, scope: int = 5, cap: int | None = None, bits: int = 8) -> int:
    q = PowerOfTwoQuantizeDequantize((), bits, encoding_analyzer=PowerOfTwo(scope, cap))
    with q.compute_encodings():
        q(x)
    found = q.get_position()
    assert found is not None
    return int(found)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("half_even", [-2, -2, 0, 0, 2, 2]),
        ("half_up", [-2, -1, 0, 1, 2, 3]),
        ("half_down", [-2, -1, 0, 0, 1, 2]),
        ("std_round", [-3, -2, -1, 1, 2, 3]),
    ],
)
def test_rounding_modes_differ_at_ties_only(mode: Any, expected: list[float]) -> None:
    assert round_by(mode)(_TIES).tolist() == expected
    other = torch.linspace(-3.3, 3.3, 101)
    other = other[(other - other.floor() - 0.5).abs() > 1e-6]
    assert torch.equal(round_by(mode)(other), torch.round(other))


def test_the_largest_number_below_a_half_is_no_tie() -> None:
    below = torch.tensor(0.49999997)
    assert [float(round_by(mode)(below)) for mode in ROUND_MODES] == [0.0] * 4


def test_an_unknown_mode_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(QuantizationError, match="half_up"):
        RoundingQuantizeDequantize(rounding="halfup")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("largest", "expected"), [(1.0, 6), (127.4 / 128, 7), (0.0, 18), (127.5, 0), (127.6, -1)]
)
def test_the_coarsest_position_clips_less_than_half_a_step(largest: float, expected: int) -> None:
    assert position(torch.tensor([largest]), scope=1) == expected


def test_finer_positions_win_where_outliers_are_few() -> None:
    torch.manual_seed(0)
    x = torch.randn(10_000)
    x[0] = 4.2
    assert (position(x, scope=1), position(x, scope=5)) == (4, 5)


def test_tiny_values_are_capped() -> None:
    x = torch.randn(100) * 1e-8
    assert position(x, cap=12) == 12
    assert position(x, cap=15, bits=16) == 15


@given(st.floats(1e-6, 1e6), st.integers(2, 16))
def test_the_position_is_that_of_the_formula(largest: float, bits: int) -> None:
    grid = IntegerRange.of_bits(bits, signed=True, symmetric=True)
    x = torch.tensor([largest], dtype=torch.float64)
    found = int(coarsest_position(-x, x, grid))
    half = 2 ** (bits - 1)
    step = max(largest / (half + 0.5), largest / (half - 0.5))
    assert found == math.floor(math.log2(1 / step))


@given(st.integers(-20, 20), st.integers(2, 16))
def test_a_range_at_a_position_gives_exactly_that_step(place: int, bits: int) -> None:
    q = PowerOfTwoQuantizeDequantize((), bits)
    q.set_range(*range_at(torch.tensor(place), q.grid))
    assert float(q.get_scale()) == 2.0**-place  # type: ignore[arg-type]
    assert position_of(2.0**-place) == place


def test_whatever_the_range_is_the_step_is_a_power_of_two() -> None:
    q = PowerOfTwoQuantizeDequantize((3,), 8)
    q.set_range(torch.tensor([-0.3, -1.0, -5.0]), torch.tensor([0.2, 1.1, 7.0]))
    scale = q.get_scale()
    assert scale is not None
    assert torch.equal(torch.frexp(scale).mantissa, torch.full((3,), 0.5))


def test_per_channel_positions_follow_their_channels() -> None:
    q = PowerOfTwoQuantizeDequantize((3, 1), 8, encoding_analyzer=PowerOfTwo(1))
    with q.compute_encodings():
        q(torch.tensor([[1.0, -1.0], [2.0, 0.5], [0.25, 0.1]]))
    assert q.get_position().flatten().tolist() == [6, 5, 8]  # type: ignore[union-attr]


def test_the_position_found_most_often_is_taken_and_the_smallest_of_several() -> None:
    q = PowerOfTwoQuantizeDequantize((), 8, encoding_analyzer=PowerOfTwo(1))
    with q.compute_encodings():
        for largest in (1.0, 4.0, 1.0, 4.0, 16.0):
            q(torch.tensor([largest]))
    assert int(q.get_position()) == 4  # type: ignore[arg-type]


def test_powers_of_two_are_symmetric() -> None:
    with pytest.raises(QuantizationError, match="symmetric"):
        PowerOfTwoQuantizeDequantize((), 8, symmetric=False)


def test_the_search_needs_its_own_quantizer() -> None:
    q = RoundingQuantizeDequantize((), 8, encoding_analyzer=PowerOfTwo())
    with (
        pytest.raises(QuantizationError, match="PowerOfTwoQuantizeDequantize"),
        q.compute_encodings(),
    ):
        q(torch.ones(3))


@pytest.mark.parametrize("mode", ROUND_MODES)
def test_integers_and_values_agree_in_every_mode(mode: Any) -> None:
    q = PowerOfTwoQuantizeDequantize((), 4, rounding=mode)
    q.set_range(-2.0, 1.75)
    x = torch.arange(-40, 40) / 8.0
    encoding = q.get_encodings()
    assert encoding is not None
    assert isinstance(encoding, RoundedEncoding) == (mode != "half_even")
    assert torch.equal(encoding.dequantize(encoding.quantize(x)), q.transform(x))
    later = copy.deepcopy(q)
    assert later.rounding == mode
    assert torch.equal(later.transform(x), q.transform(x))


@pytest.mark.parametrize("mode", ["half_up", "std_round"])
def test_gradients_do_not_depend_on_the_mode(mode: Any) -> None:
    found = []
    for rounding in ("half_even", mode):
        q = RoundingQuantizeDequantize((), 4, symmetric=True, rounding=rounding)
        q.set_range(-1.0, 0.875)
        x = torch.linspace(-2, 2, 50).requires_grad_()
        q(x).sum().backward()
        found.append(x.grad)
    assert torch.equal(found[0], found[1])  # type: ignore[arg-type]
