"""The integers of a quantizer and the shape of its ranges, as attributes that can be changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant.quantization.affine.options import Options, grid_of, resized
from fxquant.quantization.quantizer_base import QuantizerBase
from fxquant.quantization.range_to_qparams import IntegerRange

if TYPE_CHECKING:
    from fxquant.quantization.layout import Layout


class Gridded(QuantizerBase):
    """A quantizer with a grid of integers, laid over a tensor by channels or blocks."""

    _grid: IntegerRange
    _layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the ranges."""
        return self._layout.shape

    @property
    def block_size(self) -> tuple[int, ...] | None:
        """Elements per block along each axis, or None."""
        return self._layout.block_size

    @property
    def grid(self) -> IntegerRange:
        """The integers and whether they are symmetric."""
        return self._grid

    @property
    def qmin(self) -> int:
        """Smallest integer."""
        return self._grid.qmin

    @property
    def qmax(self) -> int:
        """Largest integer."""
        return self._grid.qmax

    @property
    def bitwidth(self) -> int:
        """Bits of the grid; setting it keeps signedness and range."""
        return self._grid.bits

    @bitwidth.setter
    def bitwidth(self, bits: int) -> None:
        self._set_grid(resized(self._grid, bits))

    @property
    def signed(self) -> bool:
        """True if there are negative integers; setting it keeps the number of steps."""
        return self._grid.signed

    @signed.setter
    def signed(self, signed: bool) -> None:
        if signed != self.signed:
            shift = 2 ** (self.bitwidth - 1) * (-1 if signed else 1)
            self._set_grid(IntegerRange(self.qmin + shift, self.qmax + shift, self.symmetric))

    @property
    def symmetric(self) -> bool:
        """True if the zero point is pinned to the middle; setting it keeps the range."""
        return self._grid.symmetric

    @symmetric.setter
    def symmetric(self, symmetric: bool) -> None:
        self._set_grid(grid_of(Options(qmin=self.qmin, qmax=self.qmax, symmetric=symmetric)))

    def _set_grid(self, grid: IntegerRange) -> None:
        self._grid = grid
        self._forget()
