"""Ranges of parameters that follow the parameters while these are trained.

Regular quantization-aware training keeps the ranges of activations as they were calibrated and lays
those of weights anew around the weights after every step (Krishnamoorthi 2018, arXiv:1806.08342,
section 3). Calibration may have chosen a range within the extremes of a weight, or beyond them for
the sake of a bias: the range keeps its proportion to the extremes, so that one pass over the weight
is all that a step costs.

The first look at a parameter changes nothing: it measures the proportions. They are rounded to a
few bits, so that they are found again to the last bit from a stored range and a stored parameter:
training that goes on from a checkpoint has the same ranges as training that was not interrupted.

A compiled network does the same without a look at a number: it computes both, the range moved on
and the proportions measured anew, and chooses by tensors. So that it is compiled once, for the
first step as for the next, there is a state before anything is measured: numbers that equal none.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

_BITS = 4096.0  # of the mantissa of a proportion

Ends = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Followed:
    """What a range was when it was last laid around a parameter, float32 `[S]` each.

    Attributes:
        ends: the range.
        extremes: of the parameter and zero.
        margins: ends in proportion to the extremes, or where the grid is symmetric to the larger
            of the two: where the range is chosen for its step, the other extreme says nothing.
        whole: where the range is that of the parameter itself.
        symmetric: whether the grid is.
    """

    ends: Ends
    extremes: Ends
    margins: Ends
    whole: Tensor
    symmetric: bool

    def is_at(self, ends: Ends) -> bool:
        """Whether a range is still as it was laid, and was not set or moved since."""
        return ends[0].device == self.ends[0].device and is_same(self.ends, ends)

    @classmethod
    def unknown(cls, like: Tensor, *, symmetric: bool) -> Followed:
        """The state before anything is measured: at no range."""
        ends, extremes, margins = (
            (torch.full_like(like, torch.nan), torch.full_like(like, torch.nan)) for _ in range(3)
        )
        return cls(ends, extremes, margins, torch.zeros_like(like, dtype=torch.bool), symmetric)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it, flat."""
        return (*self.ends, *self.extremes, *self.margins, self.whole)

    def moved(self, extremes: Ends) -> Followed:
        """The range in the same proportions to new extremes; as it was where they are."""
        same = (self.extremes[0] == extremes[0]) & (self.extremes[1] == extremes[1])
        measures = _measures(extremes, symmetric=self.symmetric)
        low, high = (
            torch.where(same, end, torch.where(self.whole, extreme, measure * margin))
            for end, extreme, measure, margin in zip(
                self.ends, extremes, measures, self.margins, strict=True
            )
        )
        return Followed((low, high), extremes, self.margins, self.whole, self.symmetric)


class Measured:
    """Extremes of a parameter, for as long as it is as it was.

    Args:
        x: the parameter.
        extremes: of its elements and zero, `[S]` each.
    """

    def __init__(self, x: Tensor, extremes: Ends) -> None:
        self._x, self._version, self._extremes = weakref.ref(x), x._version, extremes

    def extremes_of(self, x: Tensor) -> Ends | None:
        """The extremes, if it is this parameter."""
        same = self._x() is x and self._version == x._version
        return self._extremes if same else None


class Following:
    """How the range of one quantizer follows its parameter."""

    def __init__(self) -> None:
        self._state: Followed | None = None
        self._begun = False  # whether the parameter was trained

    def goes_on(self, ends: Ends, *, begin: bool, symmetric: bool) -> bool:
        """Whether the range is to be laid anew: nothing is done before the parameter was trained.

        Args:
            ends: the range, `[S]` each.
            begin: True if the parameter is being trained.
            symmetric: whether the grid is.
        """
        if self._state is None or self._state.whole.device != ends[0].device:
            self._state = Followed.unknown(ends[0].detach(), symmetric=symmetric)
        if begin:  # written without being read: a network in training is compiled once
            self._begun = True
            return True
        return self._begun

    def advance(self, ends: Ends, extremes: Ends) -> None:
        """Lay the range around new extremes, or measure it where it is another one, in place."""
        before = self._state
        if before is None:
            return
        if not before.is_at(ends):
            self._state = begun(ends, extremes, symmetric=before.symmetric)
        elif not is_same(before.extremes, extremes):
            self._state = before.moved(extremes)
            ends[0].copy_(self._state.ends[0])
            ends[1].copy_(self._state.ends[1])

    def advance_traced(self, ends: Ends, extremes: Ends) -> None:
        """As `advance`, without a look at a number, in a form that a compiler can follow."""
        state = self._state
        if state is None:
            return
        at = (state.ends[0] == ends[0]).all() & (state.ends[1] == ends[1]).all()
        moved, anew = state.moved(extremes), begun(ends, extremes, symmetric=state.symmetric)
        both = zip(state.tensors, moved.tensors, anew.tensors, strict=True)
        chosen = [(own, torch.where(at, a, b)) for own, a, b in both]
        for own, value in chosen:
            own.copy_(value)
        ends[0].copy_(state.ends[0])
        ends[1].copy_(state.ends[1])


def begun(ends: Ends, extremes: Ends, *, symmetric: bool) -> Followed:
    """Measure the proportions of a range: `[S]` each."""
    measures = _measures(extremes, symmetric=symmetric)
    low, high = (_margin(e, m) for e, m in zip(ends, measures, strict=True))
    whole = (ends[0] == extremes[0]) & (ends[1] == extremes[1])
    return Followed((ends[0].clone(), ends[1].clone()), extremes, (low, high), whole, symmetric)


def is_same(first: Ends, second: Ends) -> bool:
    """Whether two pairs hold the same numbers."""
    return torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def _measures(extremes: Ends, *, symmetric: bool) -> Ends:
    if not symmetric:
        return extremes
    peak = torch.maximum(-extremes[0], extremes[1])
    return -peak, peak


def _margin(end: Tensor, measure: Tensor) -> Tensor:
    """A proportion with few bits; 1 where there is nothing to measure it by."""
    unknown = measure == 0.0
    mantissa, exponent = torch.frexp(end / torch.where(unknown, 1.0, measure))
    rounded = torch.ldexp(torch.round(mantissa * _BITS) / _BITS, exponent)
    return torch.where(unknown, 1.0, rounded)
