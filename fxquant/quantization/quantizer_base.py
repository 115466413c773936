"""What all quantizers share: observing, freezing, errors that name the tensor."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.errors import (
    CalibrationError,
    QuantizationError,
    ShapeMismatchError,
    UncalibratedError,
)
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fxquant.quantization.analyzers import Statistics
    from fxquant.quantization.encodings import Encoding


class QuantizerBase(nn.Module):
    """A module that maps a tensor to the nearest values of a grid.

    Attributes:
        where: text that names the tensor in errors; set by whoever places the quantizer.
    """

    where: str | None

    def __init__(self) -> None:
        super().__init__()
        self.where = None
        self._observing = False
        self._overwritable = True
        self._enabled = True
        self._frozen = False
        self._statistics: Statistics | None = None

    # what a quantizer is -----------------------------------------------------------------------

    def is_initialized(self) -> bool:
        """True if the quantizer knows its grid."""
        raise NotImplementedError

    def get_encodings(self) -> Encoding | None:
        """What the quantized numbers mean, or None before the grid is known."""
        raise NotImplementedError

    def get_encoding(self) -> Encoding | None:
        """Another name of `get_encodings`."""
        return self.get_encodings()

    def get_scale(self) -> Tensor | None:
        """Step of the grid, or None before it is known."""
        raise NotImplementedError

    def get_offset(self) -> Tensor | None:
        """Minus the zero point, or None before it is known."""
        raise NotImplementedError

    def get_min(self) -> Tensor | None:
        """Smallest real value of the grid, or None before it is known."""
        encoding = self.get_encodings()
        low: Tensor | None = getattr(encoding, "min", None)
        return low

    def get_max(self) -> Tensor | None:
        """Largest real value of the grid, or None before it is known."""
        encoding = self.get_encodings()
        high: Tensor | None = getattr(encoding, "max", None)
        return high

    def transform(self, x: Tensor) -> Tensor:
        """The quantized tensor without its encoding; what `forward` does outside of calibration."""
        raise NotImplementedError

    # switching off -------------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """False: tensors pass through unchanged, as in a warm-up in floating point; settable."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._enabled = bool(enabled)

    def follow(self, x: Tensor, *, begin: bool = True) -> None:
        """Lay the range around a parameter that is trained, where the quantizer is set to do so."""

    # observing -----------------------------------------------------------------------------------

    @property
    def observing(self) -> bool:
        """True inside `compute_encodings()`."""
        return self._observing

    def allow_overwrite(self, allowed: bool) -> None:
        """With False, `compute_encodings()` leaves the grid as it is."""
        self._overwritable = allowed
        self._frozen = not allowed

    @property
    def overwritable(self) -> bool:
        """True if `compute_encodings()` may set the grid."""
        return self._overwritable

    @property
    def frozen(self) -> bool:
        """True if the whole grid was forbidden to change, not only ends of its range."""
        return self._frozen and not self._overwritable

    @contextmanager
    def compute_encodings(self) -> Iterator[None]:
        """Observe every tensor that is passed in and set the grid on leaving.

        Inside, the quantizer returns its input unchanged. A quantizer that sees nothing, or only
        empty tensors, keeps the grid it had. An error inside leaves the grid as it was.

        Raises:
            CalibrationError: a tensor holds NaN or infinity.

        Example:
            >>> from fxquant.quantization import affine
            >>> q = affine.QuantizeDequantize(shape=(), bitwidth=8)
            >>> with q.compute_encodings():
            ...     x = q(torch.tensor([0.0, 2.55]))
            >>> q.get_encodings().scale
            tensor(0.0100)
        """
        if self._observing:
            yield
            return
        self._observing = True
        self._start()
        try:
            yield
            if self._overwritable:
                with torch.no_grad():
                    self._finish()
        finally:
            self._observing = False
            self._stop()

    @property
    def statistics(self) -> Statistics | None:
        """What was seen so far inside `compute_encodings()`, or None outside; settable.

        Statistics of other shards or processes are merged into them before leaving:
        `q.statistics.merge(other)`.
        """
        return self._statistics

    @statistics.setter
    def statistics(self, statistics: Statistics) -> None:
        self._statistics = statistics

    def new_statistics(self) -> Statistics | None:
        """Statistics of nothing, as observing begins with; None if the grid needs none."""
        return None

    def _start(self) -> None:
        self._statistics = self.new_statistics()

    def _observe(self, x: Tensor) -> None:
        """Take one tensor into the statistics."""

    def _finish(self) -> None:
        """Set the grid from the statistics, if there are any."""

    def _stop(self) -> None:
        self._statistics = None

    # moving and copying --------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizerBase:
        """Move to another device; ranges stay float32 in a model of another precision."""

        def keep_precision(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]
        self._forget()
        return self

    def _forget(self) -> None:
        """Drop what was computed from the ranges."""

    # errors --------------------------------------------------------------------------------------

    def _uncalibrated(self, more: str = "") -> UncalibratedError:
        return UncalibratedError(
            "FXQ401",
            f"{type(self).__name__} has no range (never calibrated, or it became NaN){more}",
            at=self.where,
            fix="run compute_encodings() with representative data, or set_range(min, max)",
        )

    def _checked_ends(
        self, low: Tensor | float | None, high: Tensor | float | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Ends of a range in the quantizer's shape, where they are given."""
        first, last = (None if end is None else self._checked_end(end) for end in (low, high))
        if first is not None and last is not None and bool((first > last).any()):
            what = f"a range cannot go from {low} to {high}"
            raise QuantizationError("FXQ409", what, at=self.where, fix="pass min <= max")
        return first, last

    def _checked_end(self, value: Tensor | float) -> Tensor:
        like: Any = self.min
        try:
            given = torch.as_tensor(value, dtype=torch.float32, device=like.device).detach()
        except (TypeError, ValueError, RuntimeError) as error:  # of torch, for what is no number
            what = f"a range cannot end at {value!r}, a {type(value).__name__}"
            fix = "pass numbers or a tensor"
            raise QuantizationError("FXQ409", what, at=self.where, fix=fix) from error
        if not torch.isfinite(given).all():
            what = f"a range cannot end at {value}"
            raise QuantizationError("FXQ409", what, at=self.where, fix="use finite numbers")
        try:
            return given.expand(like.shape)
        except RuntimeError as error:
            what = f"ends of shape {tuple(given.shape)} for ranges of shape {tuple(like.shape)}"
            fix = "pass one number, or one for each range"
            raise ShapeMismatchError("FXQ426", what, at=self.where, fix=fix) from error

    def _check_float(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            what = f"{type(self).__name__} takes a tensor, not a {type(x).__name__}"
            raise QuantizationError("FXQ408", what, at=self.where, fix="pass a tensor")
        if x.layout != torch.strided:
            what = f"{type(self).__name__} needs a dense tensor, not one of {x.layout}"
            raise QuantizationError("FXQ408", what, at=self.where, fix="call .to_dense() before")
        if not x.is_floating_point():
            raise QuantizationError(
                "FXQ408",
                f"{type(self).__name__} needs a floating-point tensor, not {x.dtype}",
                at=self.where,
                fix="quantize real-valued tensors only; indices and masks stay as they are",
            )

    def _check_finite(self, low: Tensor, high: Tensor) -> None:
        # a NaN anywhere makes both extremes NaN, so no pass over the tensor is spent on this
        if low.numel() == 1:
            found = (low.item(), high.item())
            finite = math.isfinite(found[0]) and math.isfinite(found[1])
            nan = math.isnan(found[0]) or math.isnan(found[1])
        else:
            finite = bool(torch.isfinite(low).all() and torch.isfinite(high).all())
            nan = bool(low.isnan().any())
        if not finite:
            raise CalibrationError(
                "FXQ402",
                f"{'NaN' if nan else 'infinity'} in the data seen by {type(self).__name__}",
                at=self.where,
                fix="look for the first operator that makes it; check the calibration data",
            )

    def __getstate__(self) -> dict[str, Any]:
        # computed again when needed, and may hold tensors that cannot be copied
        self._forget()
        return dict(self.__dict__)


def float32(x: Tensor) -> Tensor:
    """The tensor in the precision of the arithmetic, without an encoding."""
    x = plain(x)
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
