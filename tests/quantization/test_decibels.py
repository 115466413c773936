"""Energies and decibels: sums over all values, and what has no ratio."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fxquant.quantization.decibels import Power, decibels

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100.0, 1.0, 20.0), (1.0, 0.01, 20.0), (1.0, 0.0, INF), (0.0, 0.0, INF),
        (0.0, 1.0, -INF), (1.0, INF, -INF), (1.0, NAN, -INF),
    ],
)  # fmt: skip
def test_a_ratio_of_energies(signal: float, noise: float, expected: float) -> None:
    assert decibels(signal, noise) == pytest.approx(expected)


def test_energies_are_added_up_before_the_ratio_is_taken() -> None:
    power = Power()
    power.add(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 1.0]))
    power.add(torch.tensor([1.0]), torch.tensor([1.0]))
    assert (power.signal, power.noise, power.compared) == (10.0, 1.0, 3)
    assert power.db == pytest.approx(10.0)
    assert (power.share, power.mse) == pytest.approx((0.1, 1 / 3))


@pytest.mark.parametrize(
    ("exact", "found", "expected"),
    [
        ([1.0, INF], [1.0, 0.0], None), ([1.0, NAN], [2.0, 0.0], 0.0),
        ([1.0, 1.0], [1.0, NAN], -300.0), ([1.0, 1.0], [INF, 1.0], -300.0),
        ([0.0, 0.0], [0.0, 1.0], -300.0),
    ],
)  # fmt: skip
def test_infinite_values_count_where_the_quantized_model_makes_them(
    exact: list[float], found: list[float], expected: float | None
) -> None:
    power = Power()
    power.add(torch.tensor(exact), torch.tensor(found))
    assert power.db == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    "other", [torch.zeros(3), torch.zeros(2, dtype=torch.int64)], ids=["shape", "integers"]
)
def test_what_cannot_be_compared_is_left_out(other: Tensor) -> None:
    power = Power()
    power.add_comparable([torch.ones(2), torch.ones(2)], [other, torch.ones(2)])
    assert power.compared == 2
