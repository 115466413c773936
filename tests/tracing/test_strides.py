"""`as_strided` that makes windows is recorded as windows."""

from __future__ import annotations

import pytest
import torch

from fxquant.tracing.handlers import Windows, windows


@pytest.mark.parametrize(
    ("shape", "size", "stride", "expected"),
    [
        ((2, 3, 4), (2, 5, 4), (12, 2, 1), Windows(1, 4, 2, joined=True)),
        ((2, 12), (2, 5, 4), (12, 2, 1), Windows(1, 4, 2, joined=False)),
        ((2, 12), (2, 4, 4), (12, 2, 1), None),  # fewer windows than there are
        ((2, 12), (12, 2), (1, 12), None),  # a transpose
        ((2, 12), (24,), (1,), None),  # a flat view
    ],
)
def test_windows_are_found(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    stride: tuple[int, ...],
    expected: Windows | None,
) -> None:
    x = torch.randn(shape)
    found = windows(x, size, stride, None)
    assert found == expected
    if found is not None:
        whole = x.flatten(found.dim, found.dim + 1) if found.joined else x
        made = whole.unfold(found.dim, found.length, found.step).movedim(-1, found.dim + 1)
        assert torch.equal(made, x.as_strided(size, stride))
