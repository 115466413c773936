"""Step and zero point are usable numbers whatever the range is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.errors import QuantizationError
from fxquant.quantization import affine
from fxquant.quantization.range_to_qparams import EMPTY_RANGE_SCALE, SMALLEST_SCALE, IntegerRange
from fxquant.quantization.ranges import range_of

anything = st.floats(width=32, allow_nan=False, allow_infinity=False)
bits = st.integers(2, 16)


@settings(deadline=None, max_examples=200)
@given(anything, anything, bits, st.booleans(), st.booleans())
def test_any_range_gives_a_normal_step_and_an_integer_zero_point(
    low: float, high: float, width: int, signed: bool, symmetric: bool
) -> None:
    grid = IntegerRange.of_bits(width, signed=signed, symmetric=symmetric)
    ends = torch.tensor(low), torch.tensor(high)
    scale = grid.scale(*ends)
    zero = grid.zero_point(ends[0], scale)
    assert torch.isfinite(scale)
    assert float(scale) >= SMALLEST_SCALE
    assert float(zero) == int(zero)
    assert grid.qmin <= int(zero) <= grid.qmax


@settings(deadline=None, max_examples=200)
@given(st.floats(0, 2.0**100, width=32), st.floats(0, 2.0**100, width=32), bits, st.booleans())
def test_the_grid_covers_the_range_up_to_half_a_step(
    low: float, high: float, width: int, symmetric: bool
) -> None:
    q = affine.QuantizeDequantize((), width, symmetric)
    q.set_range(-low, high)
    with torch.no_grad():
        scale, low_end, high_end = q.get_scale(), q.get_min(), q.get_max()
    assert scale is not None
    assert low_end is not None
    assert high_end is not None
    slack = 0.501 * float(scale) + 1e-6 * max(low, high)
    assert float(low_end) <= -low + slack
    assert float(high_end) >= high - slack


def test_one_sided_ranges_have_zero_at_the_end() -> None:
    grid = IntegerRange(0, 255)
    scale = grid.scale(torch.tensor(0.0), torch.tensor(3.7))
    assert int(grid.zero_point(torch.tensor(0.0), scale)) == 0
    scale = grid.scale(torch.tensor(-3.7), torch.tensor(0.0))
    assert int(grid.zero_point(torch.tensor(-3.7), scale)) == 255


def test_range_of_zeros() -> None:
    for grid in (IntegerRange(0, 255), IntegerRange(-128, 127, True)):
        assert float(grid.scale(torch.zeros(()), torch.zeros(()))) == EMPTY_RANGE_SCALE


def test_not_a_number_stays_one() -> None:
    nan = torch.tensor(torch.nan)
    for grid in (IntegerRange(0, 255), IntegerRange(-128, 127, True)):
        for ends in ((nan, nan), (nan, torch.ones(())), (torch.zeros(()), nan)):
            assert grid.scale(*ends).isnan()


def test_unsigned_symmetric_and_strict_symmetric_grids() -> None:
    assert IntegerRange(0, 255, True).middle == 128
    assert IntegerRange(-127, 127, True).middle == 0
    assert IntegerRange(-127, 127, True).bits == 8
    one = torch.ones(())
    assert float(IntegerRange(-127, 127, True).scale(-one, one)) == pytest.approx(1 / 127)
    # the negative side has one step more
    assert float(IntegerRange(-128, 127, True).scale(-one, one / 2)) == pytest.approx(1 / 128)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (5, 5), (-(2**31), 2**32)])
def test_impossible_grids_are_refused(low: int, high: int) -> None:
    with pytest.raises(QuantizationError, match="FXQ406"):
        IntegerRange(low, high)


def test_a_bound_on_the_wrong_side_can_come_back_but_goes_no_further() -> None:
    q = affine.QuantizeDequantize((), 8)
    q.set_range(0.5, 2.0)  # acts as [0, 2]
    assert float(q.get_min() or 0.0) == 0.0
    x = torch.tensor([-1.0, 1.0])
    q(x).backward(torch.tensor([1.0, 0.0]))  # wants the clipped value smaller: move min down
    assert q.min.grad is not None
    assert float(q.min.grad) > 0
    q.zero_grad()
    q(x).backward(torch.tensor([-1.0, 0.0]))
    assert q.min.grad is not None
    assert float(q.min.grad) == 0.0


@settings(deadline=None, max_examples=400)
@given(
    st.floats(2.0**-40, 2.0**40, width=32), bits, st.booleans(), st.booleans(), st.floats(0.0, 1.0)
)
def test_every_step_and_zero_point_has_a_range(
    step: float, width: int, signed: bool, symmetric: bool, share: float
) -> None:
    grid = IntegerRange.of_bits(width, signed=signed, symmetric=symmetric)
    zero = torch.tensor(float(grid.middle if symmetric else round(grid.qmin + share * grid.steps)))
    scale = torch.tensor(step)
    low, high = range_of(grid, scale, zero)
    assert low <= 0 <= high
    assert torch.equal(grid.scale(low, high), scale)
    assert torch.equal(grid.zero_point(low, scale), zero)


def test_steps_that_are_no_quotients_have_a_range() -> None:
    scale = torch.nextafter(torch.full((4096,), 1.99), torch.tensor(3.0))
    scale = scale + torch.arange(4096.0) * 2**-23  # one in 256 is no quotient of a float by 255
    for zero in (0.0, 1.0, 127.0, 128.0, 254.0, 255.0):
        low, high = range_of(IntegerRange(0, 255), scale, torch.full((4096,), zero))
        assert torch.equal(IntegerRange(0, 255).scale(low, high), scale)
        assert (IntegerRange(0, 255).zero_point(low, scale) == zero).all()
