"""A layer as a matrix product: its weight as `[G, O, D]`, its inputs as `D` numbers an output.

A convolution computes every output position from the inputs under its kernel. Only the positions
that are asked for are gathered; the whole unfolded input is never built. A transposed convolution
is a convolution of the input with zeros between its elements and the kernel turned round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import ops
from fxquant.nn.dense import Dense

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONVOLUTIONS = {
    f"conv{kind}{n}d": (n, bool(kind)) for n in (1, 2, 3) for kind in ("", "_transpose")
}


@dataclass(frozen=True)
class Product:
    """How a layer multiplies.

    Attributes:
        module: the layer.
        groups: independent products; those of a linear layer are with a matrix each.
        dims: spatial axes; 0 for a linear layer.
        transposed: whether it is a transposed convolution.
    """

    module: Any
    groups: int
    dims: int
    transposed: bool

    @property
    def matrices(self) -> tuple[int, ...]:
        """Sizes of the axes along which the weight is several matrices."""
        return self.module.size[:-2] if isinstance(self.module, Dense) else ()

    @property
    def layout(self) -> tuple[Any, ...]:
        """What layers with one weight have in common if it is the same matrix for them."""
        order = self.module.order if isinstance(self.module, Dense) else ()
        return self.groups, self.transposed, order

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight, or a tensor of its shape, as a matrix: `[...] -> [G, O, D]`."""
        if isinstance(self.module, Dense):
            matrix = self.module.matrix(weight).mT
            return matrix.reshape(self.groups, *matrix.shape[-2:])
        if not self.dims:
            return weight[None]
        first, second, *kernel = weight.shape
        if not self.transposed:
            return weight.reshape(self.groups, first // self.groups, second * math.prod(kernel))
        split = weight.reshape(self.groups, first // self.groups, second, *kernel)
        return split.transpose(1, 2).reshape(self.groups, second, -1)

    def weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """The way back: `[G, O, D] -> shape`."""
        if isinstance(self.module, Dense):
            return self.module.stored(matrix.mT)
        if not self.transposed:
            return matrix.reshape(tuple(shape))
        first, second, *kernel = shape
        split = matrix.reshape(self.groups, second, first // self.groups, *kernel)
        return split.transpose(1, 2).reshape(tuple(shape))

    def positions(self, y: Tensor) -> int:
        """Number of positions of an output, over all samples."""
        channels = self.groups * y.shape[-1] if not self.dims else y.shape[-1 - self.dims]
        return y.numel() // channels if channels else 0

    def outputs(self, y: Tensor, chosen: Tensor) -> Tensor:
        """The outputs at some positions: `[N, C, ...] -> [G, P, O]`."""
        if not self.dims:
            return self._at(y, chosen)
        y = self._batched(y)
        sample, *place = _unravel(chosen, (len(y), *y.shape[2:]))
        rows = y.movedim(1, -1)[(sample, *place)]
        return self._by_groups(rows)

    def same_rows(self, x: Tensor, y: Tensor) -> bool:
        """Whether inputs have as many rows, or samples, as outputs that may be of another run."""
        if not self.dims:
            return self._rows(x).shape[:-1] == y.shape[:-1]
        return len(self._batched(x)) == len(self._batched(y))

    def inputs(self, x: Tensor, y: Tensor, chosen: Tensor) -> Tensor:
        """What the outputs at some positions are computed from: `[N, C, ...] -> [G, P, D]`.

        Args:
            x: the layer's input.
            y: its output, of which only the shape counts.
            chosen: flat positions over samples and places, int64 `[P]`.
        """
        if not self.dims:
            return self._at(self._rows(x), chosen)
        x, out = self._batched(x), self._batched(y).shape[2:]
        wide = self._stuffed(x, out) if self.transposed else self._padded(x)
        strides = (1,) * self.dims if self.transposed else self.module.stride
        return self._by_groups(self._gathered(wide, chosen, out, strides))

    def by_channels(self, y: Tensor) -> Tensor:
        """Outputs with their channels last: `[N, C, ...] -> [N, ..., C]`."""
        if self.matrices:
            several = self._several(y)
            last = y.movedim(several, [-1 - i for i in range(len(several), 0, -1)])
            return last.flatten(-1 - len(several))
        return y.movedim(-1 - self.dims, -1) if self.dims else y

    def mean_columns(self, means: Tensor) -> Tensor:
        """Means of the columns from those of the input's channels: `[C] -> [G, D]`.

        Of a transposed convolution, one column in as many as it has strides meets an input.
        """
        kernel = math.prod(self.module.weight.shape[2:]) if self.dims else 1
        share = math.prod(self.module.stride) if self.transposed else 1
        return (means / share).repeat_interleave(kernel).reshape(self.groups, -1)

    def reached(self, x: Tensor, y: Tensor) -> Tensor:
        """Which inputs of an output are more than padding somewhere, `[D]`.

        A kernel of 3 over an axis of 1 only ever meets its middle.
        """
        shape, module = self.module.weight.shape, self.module
        if not self.dims or self.transposed or module.padding_mode != "zeros":
            columns = self.matrix(torch.empty(shape, device="meta")).shape[-1]
            return torch.ones(columns, dtype=torch.bool, device=x.device)
        found = torch.ones(shape[1], dtype=torch.bool, device=x.device)
        before = module._reversed_padding_repeated_twice[::-1][1::2]
        sizes, out = self._batched(x).shape[2:], self._batched(y).shape[2:]
        for axis in range(self.dims):
            taps = torch.arange(module.kernel_size[axis], device=x.device) * module.dilation[axis]
            starts = torch.arange(out[axis], device=x.device) * module.stride[axis] - before[axis]
            places = starts[:, None] + taps
            inside = ((places >= 0) & (places < sizes[axis])).any(0)
            found = found[..., None] & inside
        return found.reshape(-1)

    def _rows(self, x: Tensor) -> Tensor:
        """A linear layer's input as often as it is multiplied: with matrices, once with each."""
        if not self.matrices:
            return x
        return x.expand(*torch.broadcast_shapes(x.shape[:-2], self.matrices), *x.shape[-2:])

    def _several(self, rows: Tensor) -> list[int]:
        """Axes of inputs or outputs along which there are several matrices."""
        first = rows.dim() - 2 - len(self.matrices)
        return [first + i for i, n in enumerate(self.matrices) if n > 1]

    def _at(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """Some rows of a linear layer, by the matrix that they are multiplied with: `[G, P, C]`."""
        if not self.matrices:
            return rows.reshape(-1, rows.shape[-1])[chosen][None]
        several = self._several(rows)
        rows = rows.movedim(several, list(range(len(several))))
        return rows.reshape(self.groups, -1, rows.shape[-1])[:, chosen]

    def _by_groups(self, rows: Tensor) -> Tensor:
        """`[P, C, ...] -> [G, P, C/G * ...]`, also of no rows."""
        count = math.prod(rows.shape[1:]) // self.groups
        return rows.reshape(len(rows), self.groups, count).transpose(0, 1)

    def _batched(self, x: Tensor) -> Tensor:
        return x if x.dim() == self.dims + 2 else x[None]

    def _gathered(
        self, wide: Tensor, chosen: Tensor, out: Sequence[int], strides: Sequence[int]
    ) -> Tensor:
        """What lies under the kernel at some positions: `[N, C, ...] -> [P, C, kernel]`.

        One index a number: several times as fast as indexing a view of all windows.
        """
        kind = torch.int32 if wide.numel() < 2**31 else torch.int64
        whole, channel, *steps = wide.stride()
        sample, *place = _unravel(chosen, (len(wide), *out))
        start, device = sample * whole, wide.device
        inner = torch.arange(wide.shape[1], device=device) * channel
        sizes = zip(
            steps, place, strides, self.module.kernel_size, self.module.dilation, strict=True
        )
        for step, at, stride, kernel, dilation in sizes:
            start = start + at * (step * stride)
            taps = torch.arange(kernel, device=device) * (step * dilation)
            inner = inner[..., None] + (taps.flip(0) if self.transposed else taps)
        index = start.to(kind)[:, None] + inner.reshape(-1).to(kind)
        found = wide.reshape(-1).index_select(0, index.reshape(-1))
        # no -1: of no positions it could be any number
        return found.reshape(len(chosen), wide.shape[1], inner[0].numel())

    def _padded(self, x: Tensor) -> Tensor:
        """A convolution's input with its padding."""
        module = self.module
        padding, mode = module._reversed_padding_repeated_twice, module.padding_mode
        return F.pad(x, padding, mode="constant" if mode == "zeros" else mode).contiguous()

    def _stuffed(self, x: Tensor, out: Sequence[int]) -> Tensor:
        """A transposed convolution's input with zeros between its elements and around them."""
        module, places = self.module, x.shape[2:]
        sizes = [(n - 1) * s + 1 for n, s in zip(places, module.stride, strict=True)]
        wide = x.new_zeros(*x.shape[:2], *sizes)
        inner = wide
        for axis, step in enumerate(module.stride):
            inner = inner[(slice(None),) * (2 + axis) + (slice(None, None, step),)]
        inner.copy_(x)
        padding: list[int] = []
        axes = zip(sizes, out, module.kernel_size, module.dilation, module.padding, strict=True)
        for size, length, kernel, dilation, removed in axes:
            before = dilation * (kernel - 1) - removed
            padding = [before, length + dilation * (kernel - 1) - before - size, *padding]
        return F.pad(wide, padding).contiguous()


def product_of(module: nn.Module) -> Product | None:
    """How a module multiplies its input with its weight, or None if it does otherwise."""
    row = ops.row_for_module(module)
    if row is None or not isinstance(getattr(module, "weight", None), Tensor):
        return None
    if row.name == "linear":
        matrices = math.prod(module.size[:-2]) if isinstance(module, Dense) else 1
        return Product(module, matrices, 0, False)
    if row.name in _CONVOLUTIONS:
        dims, transposed = _CONVOLUTIONS[row.name]
        return Product(module, int(getattr(module, "groups", 1)), dims, transposed)
    return None


def is_table(module: nn.Module) -> bool:
    """Whether a module looks rows of its weight up."""
    row = ops.row_for_module(module)
    return row is not None and row.weight_use is ops.WeightUse.TABLE


def _unravel(flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Coordinates of flat positions, one tensor an axis."""
    found: list[Tensor] = []
    for size in reversed(sizes):
        found.insert(0, flat % size)
        flat = torch.div(flat, size, rounding_mode="floor")
    return found
