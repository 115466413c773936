"""Whether errors fell by more than chance explains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# the normal distribution's 95 %, and what few samples add to it: within 7 % of Student's quantiles
# from one degree of freedom on
_NORMAL, _FEW, _FEWER = 1.645, 1.5, 3.2


def is_real_gain(before: Tensor, after: Tensor) -> bool:
    """Whether a sum of errors fell, and other data would confirm it.

    It would if the paired differences, or the logarithms of the ratios, pass a t-test at 95 %:
    where few samples have most of the error, the first say little though every sample gains.

    Args:
        before: errors of independent samples, `[N]`.
        after: errors of the same samples, `[N]`.

    Source: Student 1908, "The Probable Error of a Mean", of the differences of pairs.

    Example:
        >>> import torch
        >>> is_real_gain(torch.tensor([2.0, 2.0, 2.0]), torch.tensor([1.0, 1.2, 1.1]))
        True
        >>> is_real_gain(torch.tensor([2.0, 2.0, 2.0]), torch.tensor([0.0, 2.1, 2.1]))
        False
    """
    if not bool(after.sum() < before.sum()):
        return False
    if len(before) != len(after):  # another number of rows has a value
        return True
    both = (before > 0) & (after > 0)
    ratios = (before[both].double() / after[both].double()).log()
    return _is_positive((before - after).double()) or _is_positive(ratios)


def _is_positive(x: Tensor) -> bool:
    """Whether the mean of all such numbers is above zero, as far as some of them tell: `[N]`."""
    freedom = len(x) - 1
    if freedom < 1:
        return freedom == 0 and bool(x > 0)
    quantile = _NORMAL + _FEW / freedom + _FEWER / freedom**2
    return float(x.mean()) * math.sqrt(len(x)) > quantile * float(x.std())
