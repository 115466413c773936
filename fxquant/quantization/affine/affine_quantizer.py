"""`AffineQuantizer`: a grid of integers with a learnable range, and what is kept beside it.

The range (`min`, `max`) is the only state. Not-a-number means "not calibrated", so a state dict
restores that as well, bit for bit. Step and zero point are computed from the range and kept until
the range changes (see `known.py`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from fxquant.quantization import kernels, traced
from fxquant.quantization.affine.following import Following, Measured
from fxquant.quantization.affine.gradient_scale import gradient_scale, with_gradient_scale
from fxquant.quantization.affine.gridded import Gridded
from fxquant.quantization.affine.known import Known
from fxquant.quantization.affine.options import analyzer_of, grid_of, layout_of, options_of
from fxquant.quantization.encodings import AffineEncoding
from fxquant.quantization.quantizer_base import float32
from fxquant.quantization.range_to_qparams import free_ends, not_above_zero
from fxquant.quantization.ranges import range_of
from fxquant.quantization.tensor import DequantizedTensor, adopt, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.quantization.affine.gradient_scale import Counted
    from fxquant.quantization.analyzers import EncodingAnalyzer, Statistics


class AffineQuantizer(Gridded):
    """A grid of integers over a learnable range.

    Args:
        shape: one range for each element of this shape, laid against the tensor from the right.
        bitwidth: bits of the grid, 2 to 32; or two integers in its place, `qmin` and `qmax`.
        symmetric: True pins the zero point to the middle of the grid.
        encoding_analyzer: how a range is chosen from observed tensors; min-max by default.
        block_size: elements per block along each axis of `shape`, -1 to derive it; or None.
        qmin: smallest integer, instead of `bitwidth`.
        qmax: largest integer, instead of `bitwidth`.
        signed: True for integers from `-2 ** (bitwidth - 1)`; as `symmetric` by default.

    Attributes:
        min: lower end of the range, a float32 parameter of `shape`; NaN before calibration.
        max: upper end of the range.
        follows: True if the range of a parameter follows it while it is trained; see `follow`.
        gradient_scale: what the elements are that gradients of the range are scaled by the number
            of (see `affine.gradient_scale`); None: the gradients as they are.
    """

    min: nn.Parameter
    max: nn.Parameter

    @overload
    def __init__(
        self,
        shape: Sequence[int] = (),
        bitwidth: int | None = None,
        symmetric: bool = False,
        encoding_analyzer: EncodingAnalyzer | None = None,
        block_size: Sequence[int] | None = None,
        *,
        qmin: int | None = None,
        qmax: int | None = None,
        signed: bool | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        shape: Sequence[int],
        qmin: int,
        qmax: int,
        symmetric: bool = False,
        encoding_analyzer: EncodingAnalyzer | None = None,
        block_size: Sequence[int] | None = None,
    ) -> None: ...
    def __init__(self, shape: Sequence[int] = (), *args: Any, **kwargs: Any) -> None:
        super().__init__()
        given = options_of(args, kwargs)
        self._grid = grid_of(given)
        self._layout = layout_of(shape, given.block_size)
        self._single = self._layout.single
        self.encoding_analyzer: EncodingAnalyzer = analyzer_of(given.encoding_analyzer)
        self._held: frozenset[str] = frozenset()
        self._seen: tuple[Statistics, Tensor, Tensor] | None = None  # and the range it gave
        self._known: Known | None = None
        self.follows = False
        self.gradient_scale: Counted | None = None
        self._following = Following()
        self._measured: Measured | None = None
        for name in ("min", "max"):
            unknown = torch.full(self._layout.shape, torch.nan, dtype=torch.float32)
            self.register_parameter(name, nn.Parameter(unknown))

    # the range -----------------------------------------------------------------------------------

    def set_range(
        self, min: Tensor | float | None = None, max: Tensor | float | None = None
    ) -> None:
        """Set one or both ends of the range; numbers and smaller shapes are broadcast."""
        low, high = self._checked_ends(min, max)
        with torch.no_grad():
            for end, given in ((self.min, low), (self.max, high)):
                if given is not None:
                    end.copy_(given)

    def allow_overwrite(
        self, allowed: bool | None = None, *, min: bool | None = None, max: bool | None = None
    ) -> None:
        """Whether `compute_encodings()` may set the range, or one end of it.

        Args:
            allowed: for both ends.
            min: for the lower end.
            max: for the upper end.

        Example:
            >>> q = AffineQuantizer((), 8)
            >>> q.set_range(min=0.0)
            >>> q.allow_overwrite(min=False)
            >>> with q.compute_encodings():
            ...     x = q(torch.tensor([-1.0, 2.0]))
            >>> q.min.item(), q.max.item()
            (0.0, 2.0)
        """
        for end, free in (("min", min), ("max", max)):
            free = allowed if free is None else free
            if free is not None:
                self._held = self._held - {end} if free else self._held | {end}
        frozen = self._frozen if allowed is None else not allowed
        super().allow_overwrite(len(self._held) < 2)
        self._frozen = frozen  # one end may be given by mathematics, which freezes no bits

    def is_overwrite_allowed(self, end: str | None = None) -> bool:
        """Whether `compute_encodings()` may set the range, or its end "min" or "max"."""
        return self.overwritable if end is None else end not in self._held

    def follow(self, x: Tensor, *, begin: bool = True) -> None:
        """Lay the range around a parameter in the proportions that it was calibrated in.

        Does nothing unless `follows` is set, and nothing to a range that is trained itself, frozen
        by `allow_overwrite(False)` or not calibrated.

        Args:
            x: the parameter, `[...]`.
            begin: False to go on only: nothing is done before the parameter was trained.
        """
        ends, following = (self.min, self.max), self._following
        trained = self.min.requires_grad or self.max.requires_grad
        if not self.follows or trained or not self._overwritable or torch.compiler.is_exporting():
            return
        if not following.goes_on(ends, begin=begin, symmetric=self._grid.symmetric):
            return
        if torch.compiler.is_compiling():
            with torch.no_grad():
                following.advance_traced(ends, self._extremes_with_zero(x))
        elif self.is_initialized():
            with torch.inference_mode(False), torch.no_grad():
                extremes = self._extremes_with_zero(x)
                following.advance(ends, extremes)
            if begin and self.block_size is None:
                self._measured = Measured(x, extremes)

    def _extremes_with_zero(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._layout.extremes(float32(x.detach()).float())
        return low.clamp(max=0.0), high.clamp(min=0.0)

    def widen(self, least: Tensor) -> None:
        """Raise the upper end of ranges whose step is smaller than `least`, `[S]` or as many."""
        scale = self.get_scale()
        if scale is None or self.block_size is not None or least.numel() != scale.numel():
            return
        least, grid = least.reshape(self.shape), self._grid
        with torch.no_grad():
            if grid.symmetric:
                wide = least * (grid.qmax - grid.middle)
            else:
                wide = least * grid.steps + self.min.clamp(max=0.0)
            self.max.copy_(torch.where(scale < least, wide, self.max))

    def is_initialized(self) -> bool:
        """True if every range is known."""
        return self._state().params is not None

    def get_scale(self) -> Tensor | None:
        """Step of the grid, float32 of the quantizer's shape, or None before calibration.

        Where the range is trained, the step has its gradient.
        """
        encoding = self._state().encoding
        if encoding is None or not self._is_trained():
            return None if encoding is None else encoding.scale
        return self.traced_scale()

    def get_offset(self) -> Tensor | None:
        """Minus the zero point, float32 of the quantizer's shape, or None before calibration.

        Where the range is trained, the offset has its gradient, which passes the rounding through.
        """
        encoding = self._state().encoding
        if encoding is None or not self._is_trained():
            return None if encoding is None else encoding.offset
        return 0.0 - self._traced_zero(self.traced_scale(), self.min)

    def _is_trained(self) -> bool:
        return torch.is_grad_enabled() and (self.min.requires_grad or self.max.requires_grad)

    def get_encodings(self) -> AffineEncoding | None:
        """What the integers mean, or None before calibration."""
        return self._state().encoding

    @classmethod
    def from_encodings(cls, encoding: AffineEncoding) -> AffineQuantizer:
        """A quantizer with this grid, to the last bit if some range has its scale.

        All scales but a few of narrowed symmetric grids (-127 to 127) have one.
        """
        quantizer = cls(
            encoding.shape,
            symmetric=encoding.symmetry,
            qmin=encoding.qmin,
            qmax=encoding.qmax,
            block_size=encoding.block_size,
        ).to(encoding.scale.device)
        quantizer.set_range(*range_of(quantizer.grid, encoding.scale, encoding.zero_point))
        return quantizer

    def _state(self) -> Known:
        low: Tensor = self._parameters["min"]  # type: ignore[assignment]
        high: Tensor = self._parameters["max"]  # type: ignore[assignment]
        known = self._known
        if known is None or not known.holds_for(low, high):
            known = self._known = self._work_out(low, high, known)
        return known

    @torch.inference_mode(False)
    @torch.no_grad()
    def _work_out(self, low: Tensor, high: Tensor, before: Known | None) -> Known:
        grid, layout = self._grid, self._layout
        known = Known.of(low, high, grid, single=self._single)
        scale = self._scale(low.detach().float(), high.detach().float())
        # on an accelerator looking at a number waits for it, so that is done once a calibration
        trusted = scale.is_meta or (scale.is_cuda and known.follows(before))
        if not trusted and bool(scale.isnan().any()):
            return known
        zero = grid.zero_point(low.detach(), scale)
        known.params = kernels.affine(
            layout.spread(scale),
            layout.spread(zero),
            grid.qmin,
            grid.qmax,
            single=layout.single,
            centred=grid.symmetric and grid.middle == 0,
        )
        known.encoding = self._encoding(scale, 0.0 - zero)
        return known

    def _scale(self, low: Tensor, high: Tensor) -> Tensor:
        return self._grid.scale(low, high)

    def _encoding(self, scale: Tensor, offset: Tensor) -> AffineEncoding:
        grid = self._grid
        return AffineEncoding(
            scale, offset, grid.qmin, grid.qmax, grid.symmetric, self._layout.block_size
        )

    def _forget(self) -> None:
        self._known = self._measured = None

    # using it ------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """The tensor on the grid, or the tensor itself while observing."""
        if self._observing:
            if self._overwritable:
                self._observe(x)
            return x
        if not self._enabled:
            return x
        if torch.compiler.is_compiling():
            return self._traced(x)
        known = self._state()
        return self._attach(self._run(x, known), known.encoding)

    def traced_scale(self) -> Tensor:
        """Step of the grid, computed from the range in a form that a compiler can follow."""
        return self._scale(self.min, self.max)

    def _traced(self, x: Tensor) -> Tensor:
        grid, layout = self._grid, self._layout
        low: Tensor = self.min
        high: Tensor = self.max
        if self.gradient_scale is not None:
            by = gradient_scale(x, math.prod(self.shape), grid, self.gradient_scale)
            low, high = with_gradient_scale(low, by), with_gradient_scale(high, by)
        if (low.requires_grad or high.requires_grad) and not grid.symmetric:
            seen = layout.extremes(float32(x.detach()).float())
            low, high = free_ends(low, high, *seen, self._scale(low.detach(), high.detach()))
        scale = self._scale(low, high)
        zero = self._traced_zero(scale, low)
        scale, zero = (traced.computed_once(v) for v in (scale, zero))
        y = self._traced_step(layout.split(float32(x)), layout.spread(scale), layout.spread(zero))
        return traced.on_grid(y.reshape(x.shape).to(x.dtype), scale)

    def _traced_zero(self, scale: Tensor, low: Tensor) -> Tensor:
        grid = self._grid
        if grid.symmetric:
            return torch.full_like(scale, grid.middle)
        zero = grid.qmin - traced.straight_through_round(not_above_zero(low) / scale)
        return traced.clipped(zero, grid.qmin, grid.qmax)

    def _traced_step(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return traced.quantize_dequantize(x, scale, zero, self.qmin, self.qmax)

    def _attach(self, y: Tensor, encoding: AffineEncoding | None) -> Tensor:
        return adopt(y, encoding, DequantizedTensor)

    def transform(self, x: Tensor) -> Tensor:
        """The tensor on the grid as a plain tensor, in the precision of the input."""
        return self._run(x, self._state())

    def _run(self, x: Tensor, known: Known) -> Tensor:
        params = known.params
        if params is None:
            raise self._uncalibrated()
        if type(x) is not Tensor:
            self._check_float(x)
            x = plain(x)
        given = x.dtype
        if given is not torch.float32:
            self._check_float(x)
            x = float32(x)
        if self._single:
            y = self._step(x, known, params)
        else:
            y = self._step(self._layout.split(x), known, params)
            if y.shape != x.shape:
                y = y.reshape(x.shape)
        return y if y.dtype is given else y.to(given)

    def _step(self, x: Tensor, known: Known, params: kernels.Affine) -> Tensor:
        if self._differentiable(x, known):
            measured, self._measured = self._measured, None  # of the moment before
            extremes = None if measured is None else measured.extremes_of(x)
            learning = self._learning(x, known)
            return kernels.apply(x, known.low, known.high, params, learning, extremes)
        return kernels.quantize_dequantize(x, params)

    def _learning(self, x: Tensor, known: Known) -> kernels.Lazy:
        """What gives the gradients of the range for a tensor, when they are asked for."""
        if self.gradient_scale is None:
            return known.factors
        by = gradient_scale(x, math.prod(self.shape), self._grid, self.gradient_scale)
        return lambda: known.factors().scaled(by)

    def _differentiable(self, x: Tensor, known: Known) -> bool:
        return torch.is_grad_enabled() and (
            x.requires_grad or known.low.requires_grad or known.high.requires_grad
        )

    # observing -----------------------------------------------------------------------------------

    def new_statistics(self) -> Statistics:
        """Statistics of nothing, as observing begins with."""
        return self.encoding_analyzer.start(self._layout)

    def _observe(self, x: Tensor) -> None:
        self._check_float(x)
        if x.numel() == 0 or self._statistics is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            seen = float32(x.detach())
            low, high = self._layout.extremes(seen)
            self._check_finite(low, high)
            self._statistics.update(seen, low, high)

    def _finish(self) -> None:
        if self._statistics is not None:
            self._choose(self._statistics)

    def _choose(self, seen: Statistics) -> None:
        found = self.encoding_analyzer.range(seen, self._grid)
        if found is not None:
            ends = {"min": found[0].clamp(max=0.0), "max": found[1].clamp(min=0.0)}
            self.set_range(**{end: v for end, v in ends.items() if end not in self._held})
            if self._single:  # of many ranges it would be too much
                self._seen = seen, self.min.detach().clone(), self.max.detach().clone()

    def extra_repr(self) -> str:
        """Shape, block size and grid."""
        block = "" if self.block_size is None else f"block_size={self.block_size}, "
        return (
            f"shape={self.shape}, {block}qmin={self.qmin}, qmax={self.qmax}, "
            f"symmetric={self.symmetric}"
        )
