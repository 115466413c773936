"""Ranges are laid against tensors from the right, in channels or in blocks of any axis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.errors import QuantizationError, ShapeMismatchError
from fxquant.quantization.layout import Layout, flat


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3))
def test_rows_and_extremes_agree_with_a_loop_over_blocks(sizes: list[tuple[int, int]]) -> None:
    shape, block = tuple(n for n, _ in sizes), tuple(b for _, b in sizes)
    layout = Layout(shape, block)
    x = torch.randn([n * b for n, b in sizes])
    rows = layout.rows(x)
    low, high = layout.extremes(x)
    for number, index in enumerate(
        torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape))
    ):
        part = x[tuple(slice(i * b, i * b + b) for i, b in zip(index.tolist(), block, strict=True))]
        assert torch.equal(rows[number].sort().values, part.flatten().sort().values)
        assert low[tuple(index)] == part.min()
        assert high[tuple(index)] == part.max()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_of_channels_of_any_axis(axis: int) -> None:
    x = torch.randn(3, 4, 5)
    shape = [1, 1, 1]
    shape[axis] = x.shape[axis]
    layout = Layout(tuple(shape))
    assert torch.equal(layout.rows(x), x.movedim(axis, 0).flatten(1))
    assert torch.equal(layout.extremes(x)[0].flatten(), x.movedim(axis, 0).flatten(1).amin(1))


def test_leading_axes_are_shared() -> None:
    layout = Layout((5,))
    x = torch.randn(3, 4, 5)
    assert layout.rows(x).shape == (5, 12)
    assert Layout((2,), (2,)).split(torch.zeros(3, 4)).shape == (3, 2, 2)


def test_single_ranges_fit_everything() -> None:
    for shape in ((), (1,), (1, 1, 1, 1)):
        layout = Layout(shape)
        assert layout.single
        assert layout.spread(torch.ones(shape)).shape == ()
        assert layout.split(torch.zeros(3)).shape == (3,)
        assert layout.extremes(torch.zeros(()))[0].shape == shape


def test_granularity() -> None:
    assert Layout(()).granularity == "pertensor"
    assert Layout((4, 1)).granularity == "perchannel"
    assert Layout((4, 1), (1, -1)).granularity == "blockwise"


@pytest.mark.parametrize(
    ("shape", "block", "size", "code"),
    [
        ((4, 1), None, (3, 5), "FXQ404"),
        ((4, 1), None, (4,), "FXQ404"),
        ((4, 2), (1, 3), (4, 8), "FXQ405"),
        ((4, 3), (1, -1), (4, 8), "FXQ405"),
        ((4, 2), (1, 4), (8,), "FXQ404"),
    ],
)
def test_what_does_not_fit_is_refused(
    shape: tuple[int, ...], block: tuple[int, ...] | None, size: tuple[int, ...], code: str
) -> None:
    with pytest.raises(ShapeMismatchError, match=code):
        Layout(shape, block).split(torch.zeros(size))


@pytest.mark.parametrize("block", [(4,), (1, 0), (1, -2)])
def test_impossible_blocks_are_refused(block: tuple[int, ...]) -> None:
    with pytest.raises(QuantizationError, match="FXQ403"):
        Layout((4, 2), block)


def test_flat_does_not_copy_dense_tensors() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert flat(x).data_ptr() == x.data_ptr()
    last = x.contiguous(memory_format=torch.channels_last)
    assert flat(last).data_ptr() == last.data_ptr()
    assert flat(x.mT).shape == (120,)
