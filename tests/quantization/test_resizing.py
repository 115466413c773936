"""Another number of bits: the range is the one that calibration would choose for them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from fxquant.quantization import QuantScheme, affine
from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize
from fxquant.quantization.affine.resizing import resize

SCHEMES = ["min_max", "tf_enhanced", "percentile", "mse", "entropy", "moving_average"]


def observed(q: Any) -> Any:
    rng = torch.Generator().manual_seed(0)
    with q.compute_encodings():
        for _ in range(3):
            q(torch.randn(4, 50, generator=rng) ** 3)
    return q


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_range_is_that_of_a_calibration_with_these_bits(scheme: str, symmetric: bool) -> None:
    def made(bits: int) -> Any:
        analyzer = QuantScheme(scheme).analyzer()
        return observed(affine.QuantizeDequantize((), bits, symmetric, analyzer))

    q = made(8)
    for bits in (4, 16, 8):
        assert resize(q, bits)
        other = made(bits)
        assert q.bitwidth == bits
        assert torch.equal(q.min, other.min)
        assert torch.equal(q.max, other.max)


def test_a_range_that_was_set_is_kept() -> None:
    q = observed(affine.QuantizeDequantize((), 8, encoding_analyzer=QuantScheme("mse").analyzer()))
    q.set_range(max=2.0)
    low = q.min.item()
    assert not resize(q, 4)
    assert (q.min.item(), q.max.item(), q.bitwidth) == (low, 2.0, 4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
def test_a_copy_knows_what_was_seen(copied: Any) -> None:
    q = observed(affine.QuantizeDequantize((), 8, encoding_analyzer=QuantScheme("mse").analyzer()))
    other = copied(q)
    assert resize(q, 4)
    assert resize(other, 4)
    assert torch.equal(q.min, other.min)
    assert torch.equal(q.max, other.max)


def test_one_end_that_is_given_stays_and_the_other_follows() -> None:
    q = affine.QuantizeDequantize((), 8, encoding_analyzer=QuantScheme("mse").analyzer())
    q.set_range(min=-1.0)
    q.allow_overwrite(min=False)
    observed(q)
    assert not q.frozen
    assert resize(q, 4)
    assert q.min.item() == -1.0


def test_ranges_that_no_statistics_tell_are_kept() -> None:
    q = observed(PowerOfTwoQuantizeDequantize((), 8))
    low, high = q.min.item(), q.max.item()
    assert not resize(q, 16)
    assert (q.min.item(), q.max.item()) == (low, high)
    fresh = affine.QuantizeDequantize((), 8)
    assert resize(fresh, 4)
    assert not fresh.is_initialized()


def test_frozen_is_what_was_forbidden_as_a_whole() -> None:
    q = affine.QuantizeDequantize((), 8)
    q.allow_overwrite(min=False, max=False)
    assert not q.overwritable
    assert not q.frozen
    q.allow_overwrite(False)
    assert q.frozen
    q.allow_overwrite(min=True)
    assert not q.frozen
    q.allow_overwrite(False)
    q.allow_overwrite(True)
    assert not q.frozen
