"""Which elements of which values have to be scaled by one factor.

Every element of every floating-point value gets the number ("id") of a factor. Layers make new ids,
one for each output channel; operators that move values move ids; operators that join values, such
as an addition, make ids one (union-find); what is not homogeneous fixes them: f(s x) = s f(x) has
to hold for every positive s. Id 0 is that of zeros, which fit every factor.

Why ids of elements and not of channels: a reshape, a concatenation or a channel shuffle is then
followed by running it on ids instead of knowing what it does to channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class ScaleIds:
    """A union-find over ids; see the module's docstring."""

    def __init__(self) -> None:
        self._above = [0]
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Tensor:
        """New ids, float64 `[count]`: modules such as a padding take no integers."""
        first = len(self._above)
        self._above.extend(range(first, first + count))
        return torch.arange(first, first + count, dtype=torch.float64)

    def fixed(self, shape: Sequence[int], reason: str) -> Tensor:
        """Ids of a value that cannot be scaled."""
        made = self.fresh(1)
        self._reasons[int(made)] = reason
        return made.expand(tuple(shape)) if len(shape) else made.reshape(())

    def root(self, number: int) -> int:
        """The id that stands for all that were joined with this one."""
        above = self._above
        while above[number] != number:
            above[number] = above[above[number]]
            number = above[number]
        return number

    def roots(self, ids: Tensor) -> list[int]:
        """`root` of every id of a `[C]` tensor."""
        return [self.root(int(i)) for i in ids.tolist()]

    def join(self, first: Tensor, second: Tensor) -> None:
        """Elements at the same place have the same factor; shapes are broadcast."""
        one, two = squeezed(*torch.broadcast_tensors(first, second))
        count = len(self._above)
        # one number a pair: `unique` of rows is slower by far
        for pair in (one.long() * count + two.long()).unique().tolist():
            a, b = divmod(pair, count)
            if a and b:
                self._join(a, b)

    def _join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a == b:
            return
        self._above[b] = a
        reason = self._reasons.pop(b, None)
        if reason is not None:
            self._reasons.setdefault(a, reason)

    def fix(self, ids: Tensor, reason: str) -> None:
        """Elements cannot be scaled."""
        (ids,) = squeezed(ids)
        for number in ids.reshape(-1).unique().long().tolist():
            if number:
                self._reasons.setdefault(self.root(number), reason)

    def reason(self, number: int) -> str | None:
        """Why an id cannot be scaled; None if it can."""
        return self._reasons.get(self.root(number))

    def is_fixed(self, ids: Tensor) -> bool:
        """Whether no element can be scaled."""
        (ids,) = squeezed(ids)
        numbers = ids.reshape(-1).unique().long().tolist()
        return all(not n or self.reason(n) is not None for n in numbers)

    def collapse(self, ids: Tensor, dims: Iterable[int]) -> Tensor:
        """What is summed, averaged or compared along dimensions has one factor; they get size 1."""
        for dim in sorted({d % max(ids.dim(), 1) for d in dims}):
            if ids.dim() == 0 or ids.shape[dim] == 0:
                continue
            if ids.stride(dim) == 0 or ids.shape[dim] == 1:
                ids = ids.narrow(dim, 0, 1)
                continue
            most = ids.amax(dim, keepdim=True)
            self.join(ids, most)
            ids = most
        return ids

    def channels(self, ids: Tensor, dim: int) -> Tensor:
        """Ids of the channels along a dimension, `[C]`; all elements of a channel become one."""
        others = [d for d in range(ids.dim()) if d != dim % ids.dim()]
        return self.collapse(ids, others).reshape(-1)


def along(ids: Tensor, dim: int, shape: Sequence[int]) -> Tensor:
    """`[C]` ids as those of a whole value with its channels along `dim`."""
    dim %= len(shape)
    return ids.reshape(-1, *[1] * (len(shape) - 1 - dim)).expand(tuple(shape))


def settled(ids: Tensor) -> Tensor:
    """The same ids, with dimensions along which they do not differ held once."""
    for dim in range(ids.dim()):
        if ids.shape[dim] > 1 and ids.stride(dim) != 0:
            first = ids.narrow(dim, 0, 1)
            if bool((ids == first).all()):
                ids = first.expand(ids.shape)
    return ids


def squeezed(*ids: Tensor) -> list[Tensor]:
    """Tensors of one shape without the dimensions along which none differs."""
    for dim in range(ids[0].dim()):
        if ids[0].shape[dim] > 1 and all(t.stride(dim) == 0 for t in ids):
            ids = tuple(t.narrow(dim, 0, 1) for t in ids)
    return list(ids)
