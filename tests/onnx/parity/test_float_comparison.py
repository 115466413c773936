"""Agreement with the float model: known numbers, and what has none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fxquant.errors import ExportError
from fxquant.onnx.parity.float_comparison import Agreement, compare_with_float


def agreement(real: object, other: object) -> Agreement:
    (row,) = compare_with_float({"y": np.asarray(real)}, {"y": np.asarray(other)})
    return row


def test_noise_of_a_tenth_is_twenty_decibels() -> None:
    real = np.array([[1.0, -1.0], [-1.0, 1.0]], np.float32)
    row = agreement(real, real * np.float32(1.1))
    assert row.sqnr_db == pytest.approx(20.0, abs=1e-4)
    assert row.cosine == pytest.approx(1.0)
    assert row.relative == pytest.approx(0.1, rel=1e-5)
    assert (row.elements, row.equal_share, row.labels) == (4, 0.0, 1.0)
    assert agreement(real, -real).labels == 0.0
    assert agreement(real * 1e-30, real * 1.1e-30).sqnr_db == pytest.approx(20.0, abs=1e-3)


def test_what_has_no_decibels() -> None:
    zeros = np.zeros(3, np.float32)
    assert agreement(zeros, zeros).sqnr_db == math.inf
    assert agreement(zeros, zeros + 1).sqnr_db == -math.inf
    assert agreement(zeros, zeros).cosine is None
    assert agreement(zeros[:0], zeros[:0]) == Agreement("y", 0, None, None, None, None, None)
    whole = agreement(np.array([1, 2]), np.array([1, 3]))
    assert (whole.sqnr_db, whole.equal_share) == (None, 0.5)
    assert agreement([True, False], [True, False]).equal_share == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    with pytest.raises(ExportError, match=r"'y' of the quantized model .* 1 of 2") as caught:
        agreement(np.array([1.0, 2.0]), np.array([1.0, bad]))
    assert caught.value.code == "FXQ597"


def test_other_names_and_shapes_are_refused() -> None:
    with pytest.raises(ExportError, match="outputs") as caught:
        compare_with_float({"y": np.zeros(1)}, {"z": np.zeros(1)})
    assert caught.value.code == "FXQ596"
    with pytest.raises(ExportError, match="shape"):
        agreement(np.zeros(2), np.zeros(3))
