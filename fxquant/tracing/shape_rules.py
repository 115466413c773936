"""How the sizes of a result follow from those of the inputs: one small function per family.

Each takes the recorded call and one tensor of its result, and says per dimension what can change
its size. This is a list of rules, one for each word of the operator table with the table of them
behind it: like other tables it may be longer than 400 lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxquant.graph.symbolic_ints import Change, Tracked, plain
from fxquant.ops import SIZED_BY_VALUE, Sizes

Dims: TypeAlias = tuple[Change, ...]
NEVER = Change.NEVER


@dataclass(frozen=True)
class Call:
    """A recorded call as the rules see it.

    Attributes:
        name: plain name of the function, method or module class.
        args: arguments, with tracked numbers.
        kwargs: keyword arguments.
        lookup: dims of a tensor.
        sized: the largest change among the numbers given.
        known: all tensors of the call with their dims.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    lookup: Callable[[Tensor], Dims]
    sized: Change
    known: list[tuple[Tensor, Dims]]

    def get(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    def tensor(self, index: int, name: str) -> Tensor:
        """A tensor argument; ``LookupError`` if there is none."""
        value = self.get(index, name)
        if isinstance(value, Tensor):
            return value
        raise LookupError(name)

    @property
    def first(self) -> Tensor:
        """The tensor that the call is about."""
        return self.known[0][0]

    @property
    def dims(self) -> Dims:
        """Its dims."""
        return self.known[0][1]

    def sizes(self, index: int, *names: str) -> list[Any]:
        """Sizes given one by one or as one sequence, from a position on."""
        given: list[Any] = list(self.args[index:])
        for name in names:
            given += [self.kwargs[name]] if name in self.kwargs else []
        if given and isinstance(given[0], tuple | list):
            given = list(given[0])
        return [v for v in given if isinstance(v, int)]


def change_of(value: Any) -> Change:
    """What can change a number."""
    return value.trail.change if isinstance(value, Tracked) else NEVER


def largest(call: Call, out: Tensor) -> Dims:
    most = max((change for _, dims in call.known for change in dims), default=NEVER)
    return (max(most, call.sized),) * out.dim()


def broadcast(call: Call, out: Tensor) -> Dims:
    """Element-wise: every input broadcasts to the result, and one has its shape."""
    shapes = [t.shape for t, _ in call.known]
    if out.shape not in shapes or not all(_fits(s, out.shape) for s in shapes):
        return largest(call, out)
    found = []
    for back in range(out.dim(), 0, -1):
        here = [(t.shape[-back], d[-back]) for t, d in call.known if t.dim() >= back]
        fixed = any(size == out.shape[-back] != 1 and not change for size, change in here)
        found.append(NEVER if fixed else max(change for _, change in here))
    return tuple(found)


def _fits(shape: torch.Size, wide: torch.Size) -> bool:
    if len(shape) > len(wide):
        return False
    pairs = zip(reversed(shape), reversed(wide), strict=False)
    return all(a in (1, b) for a, b in pairs)


_MASKS = (torch.bool, torch.uint8)


def inherit(call: Call, out: Tensor) -> Dims:
    """Sizes follow those of the first tensor, axis by axis."""
    return tuple(max(c, call.sized if c else NEVER) for c in call.dims)


def alike(call: Call, out: Tensor) -> Dims:
    """The shape of the first tensor, whatever the shapes of its parameters."""
    return call.dims if out.shape == call.first.shape else largest(call, out)


def padded(call: Call, out: Tensor) -> Dims:
    same = zip(call.dims, call.first.shape, out.shape, strict=True)
    return tuple(max(c, call.sized) if a != b or call.sized else c for c, a, b in same)


def viewed(call: Call, out: Tensor) -> Dims:
    sizes = call.sizes(1, "shape", "size")
    wanted = [change_of(v) for v in sizes]
    if -1 in [plain(v) for v in sizes]:
        free = [plain(v) for v in sizes].index(-1)
        dynamic = [s for s, c in zip(call.first.shape, call.dims, strict=True) if c]
        asked = [plain(v) for v in sizes if change_of(v)]
        # view(batch, -1): what is left of the input once the batch is divided away
        paired = len(asked) == len(dynamic) or min(dynamic, default=2) > 1
        if not (math.prod(dynamic) == math.prod(asked) and paired):
            wanted[free] = max((*call.dims, *wanted))
    return tuple(wanted)


def expanded(call: Call, out: Tensor) -> Dims:
    sizes = call.sizes(1, "size")
    before = (NEVER,) * (out.dim() - len(call.dims)) + call.dims
    pairs = zip(sizes, before, strict=True)
    return tuple(c if plain(v) == -1 else change_of(v) for v, c in pairs)


def repeated(call: Call, out: Tensor) -> Dims:
    sizes = call.sizes(1, "repeats", "dims")
    before = (NEVER,) * (out.dim() - len(call.dims)) + call.dims
    times = [NEVER] * (out.dim() - len(sizes)) + [change_of(v) for v in sizes]
    return tuple(map(max, zip(before, times, strict=True)))


def created(call: Call, out: Tensor) -> Dims:
    return tuple(change_of(v) for v in call.sizes(0, "size"))


def created_beside(call: Call, out: Tensor) -> Dims:
    return tuple(change_of(v) for v in call.sizes(1, "size"))


def permuted(call: Call, out: Tensor) -> Dims:
    return tuple(call.dims[d] for d in call.sizes(1, "dims"))


def transposed(call: Call, out: Tensor) -> Dims:
    dims = list(call.dims)
    a = call.get(1, "dim0", call.kwargs.get("axis0"))
    b = call.get(2, "dim1", call.kwargs.get("axis1"))
    dims[a], dims[b] = dims[b], dims[a]
    return tuple(dims)


def turned(call: Call, out: Tensor) -> Dims:
    return call.dims[::-1]


def swapped_last(call: Call, out: Tensor) -> Dims:
    return (*call.dims[:-2], call.dims[-1], call.dims[-2])


def attribute(call: Call, out: Tensor) -> Dims:
    by_name = {"T": turned, "mT": swapped_last, "H": turned, "mH": swapped_last}
    return by_name.get(str(call.args[1]), broadcast)(call, out)


def moved(call: Call, out: Tensor) -> Dims:
    marks = torch.empty([i + 2 for i in range(len(call.dims))], device="meta")
    shape = torch.movedim(marks, call.get(1, "source"), call.get(2, "destination")).shape
    return tuple(call.dims[s - 2] for s in shape)


def unsqueezed(call: Call, out: Tensor) -> Dims:
    dims = list(call.dims)
    dims.insert(call.get(1, "dim") % out.dim(), NEVER)
    return tuple(dims)


def squeezed(call: Call, out: Tensor) -> Dims:
    gone = _axes(call, call.get(1, "dim"))
    sizes = call.first.shape
    return tuple(c for i, c in enumerate(call.dims) if not (i in gone and sizes[i] == 1))


def _axes(call: Call, dim: Any) -> set[int]:
    count = len(call.dims)
    if dim is None:
        return set(range(count))
    return {d % count for d in (dim if isinstance(dim, tuple | list) else [dim])}


def flattened(call: Call, out: Tensor) -> Dims:
    count = len(call.dims)
    start, end = call.get(1, "start_dim", 0) % count, call.get(2, "end_dim", -1) % count
    return (*call.dims[:start], max(call.dims[start : end + 1]), *call.dims[end + 1 :])


def unflattened(call: Call, out: Tensor) -> Dims:
    dim, sizes = call.get(1, "dim") % len(call.dims), call.get(2, "sizes")
    inner = [change_of(v) for v in sizes]
    if -1 in [plain(v) for v in sizes]:
        inner[[plain(v) for v in sizes].index(-1)] = call.dims[dim]
    return (*call.dims[:dim], *inner, *call.dims[dim + 1 :])


def without(call: Call, out: Tensor) -> Dims:
    dim = call.get(1, "dim", 0) % len(call.dims)
    return call.dims[:dim] + call.dims[dim + 1 :]


def reduced(call: Call, out: Tensor) -> Dims:
    if out.dim() == 0:
        return ()
    dim = call.get(1, "dim")
    if dim is None or isinstance(dim, Tensor):
        return broadcast(call, out)
    gone = _axes(call, dim)
    if out.dim() == len(call.dims):
        return tuple(NEVER if i in gone else c for i, c in enumerate(call.dims))
    return tuple(c for i, c in enumerate(call.dims) if i not in gone)


def norm(call: Call, out: Tensor) -> Dims:
    dim = call.get(2, "dim")
    renamed = Call("sum", (call.first, dim), {}, call.lookup, call.sized, call.known)
    return reduced(renamed, out)


def top(call: Call, out: Tensor) -> Dims:
    dim = call.get(2, "dim", -1) % len(call.dims)
    return (*call.dims[:dim], change_of(call.get(1, "k")), *call.dims[dim + 1 :])


def joined(call: Call, out: Tensor) -> Dims:
    tensors = call.get(0, "tensors")
    dim = call.get(1, "dim", 0) % out.dim()
    rows = [call.lookup(t) for t in tensors if t.dim() == out.dim()]
    merged = [min(column) for column in zip(*rows, strict=True)]
    merged[dim] = max(row[dim] for row in rows)
    return tuple(merged)


def stacked(call: Call, out: Tensor) -> Dims:
    rows = [call.lookup(t) for t in call.get(0, "tensors")]
    merged = [min(column) for column in zip(*rows, strict=True)]
    merged.insert(call.get(1, "dim", 0) % out.dim(), NEVER)
    return tuple(merged)


def product(call: Call, out: Tensor) -> Dims:
    (left, a), (right, b) = call.known[:2]
    if left.dim() < 2 or right.dim() < 2:
        return largest(call, out)
    count = out.dim() - 2
    rows = [(NEVER,) * (count + 2 - len(d)) + d for d in (a, b)]
    sizes = [(1,) * (count + 2 - t.dim()) + tuple(t.shape) for t in (left, right)]
    batch = []
    for i in range(count):
        here = [r[i] for r, s in zip(rows, sizes, strict=True) if s[i] == out.shape[i]]
        batch.append(min(here) if out.shape[i] > 1 else max(rows[0][i], rows[1][i]))
    return (*batch, a[-2], b[-1])


def linear(call: Call, out: Tensor) -> Dims:
    weight = _weight(call)
    if weight is None:
        return (*call.dims[:-1], NEVER)
    return (*call.dims[:-1], *weight[:1][: out.dim()])


def convolved(call: Call, out: Tensor) -> Dims:
    weight = _weight(call)
    spatial = _spatial(call.name) if weight is None else len(weight) - 2
    channels = NEVER if weight is None else max(weight[:2])
    batch = call.dims[: -spatial - 1]
    return (*batch, channels, *(max(c, call.sized) for c in call.dims[-spatial:]))


def _weight(call: Call) -> Dims | None:
    """The dims of the weight that a call is given; None of a module, which holds its own."""
    weight = call.get(1, "weight")
    return call.lookup(weight) if isinstance(weight, Tensor) else None


def resized(call: Call, out: Tensor) -> Dims:
    size = call.get(1, "size", call.kwargs.get("output_size"))
    if size is None:
        return call.dims
    sizes = list(size) if isinstance(size, tuple | list) else [size]
    spatial = out.dim() - 2
    sizes = sizes * spatial if len(sizes) == 1 else sizes
    ends = zip(sizes, call.dims[-spatial:], strict=True)
    return (*call.dims[:-spatial], *(c if v is None else change_of(v) for v, c in ends))


def _spatial(name: str) -> int:
    return next(int(c) for c in name if c in "123")


def embedded(call: Call, out: Tensor) -> Dims:
    weight = _weight(call)
    return (*call.dims, *((NEVER,) if weight is None else weight[1:]))


def attention(call: Call, out: Tensor) -> Dims:
    return (*call.dims[:-1], call.lookup(call.tensor(2, "value"))[-1])


def einsum(call: Call, out: Tensor) -> Dims:
    equation = call.args[0].replace(" ", "")
    operands = [d for _, d in call.known]
    left, arrow, right = equation.partition("->")
    if not arrow or "." in equation:
        return largest(call, out)
    change: dict[str, Change] = {}
    for labels, dims in zip(left.split(","), operands, strict=True):
        for label, c in zip(labels, dims, strict=True):
            change[label] = min(change.get(label, c), c)
    return tuple(change[label] for label in right)


def indexed(call: Call, out: Tensor) -> Dims:
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    advanced = [i for i in index if isinstance(i, Tensor | list)]
    if any(isinstance(i, Tensor) and i.dtype in _MASKS for i in advanced):
        return by_value(call, out)
    if len(advanced) > 1 or any(isinstance(i, list) for i in advanced):
        return largest(call, out)
    taken = sum(i is not None and i is not Ellipsis and i is not True for i in index)
    left, found = list(call.dims), []
    for item in index:
        if item is None:
            found.append(NEVER)
        elif item is Ellipsis:
            skipped = len(call.dims) - taken
            found += left[:skipped]
            left = left[skipped:]
        else:
            found += _item(call, item, left.pop(0))
    return (*found, *left)


def _item(call: Call, item: Any, here: Change) -> list[Change]:
    if isinstance(item, Tensor):
        return list(call.lookup(item))
    if isinstance(item, slice):
        return [max(here, change_of(item.start), change_of(item.stop), change_of(item.step))]
    return []


def by_index(call: Call, out: Tensor) -> Dims:
    index = call.lookup(call.tensor(2, "index"))
    if call.name == "index_select":
        dim = call.get(1, "dim") % len(call.dims)
        return (*call.dims[:dim], *index, *call.dims[dim + 1 :])
    return index


def like_other(call: Call, out: Tensor) -> Dims:
    return call.known[1][1]


def grid(call: Call, out: Tensor) -> Dims:
    rows = [d[0] if d else NEVER for _, d in call.known]
    if call.kwargs.get("indexing") == "xy" and len(rows) > 1:
        rows[0], rows[1] = rows[1], rows[0]
    return tuple(rows)


def split(call: Call, out: Tensor) -> Dims:
    dim = call.get(2, "dim", 0) % len(call.dims)
    return tuple(max(c, call.sized) if i == dim else c for i, c in enumerate(call.dims))


def chosen(call: Call, out: Tensor) -> Dims:
    """``where`` of three arguments; of one, its size depends on values."""
    rule = broadcast if len(call.args) + len(call.kwargs) > 1 else by_value
    return rule(call, out)


def copied(call: Call, out: Tensor) -> Dims:
    """``repeat_interleave``."""
    rule = largest if isinstance(call.get(1, "repeats"), int) else by_value
    return rule(call, out)


def unfolded(call: Call, out: Tensor) -> Dims:
    if len(call.args) > 3 or "dimension" in call.kwargs:  # Tensor.unfold(dimension, size, step)
        return (*call.dims, NEVER)
    return (call.dims[0], call.dims[1], max(call.dims[2:]))


def by_value(call: Call, out: Tensor) -> Dims:
    return (Change.VALUE,) * out.dim()


def made(call: Call, out: Tensor) -> Dims:
    """A tensor from data: as many items as Python has, or the shape of the tensor given."""
    given = call.get(0, "data")
    return call.lookup(given) if isinstance(given, Tensor) else (NEVER,) * out.dim()


def recurrent(call: Call, out: Tensor) -> Dims:
    if out.dim() == call.first.dim() and out.shape[:-1] == call.first.shape[:-1]:
        return (*call.dims[:-1], NEVER)
    return (NEVER, *(max(call.dims[:2]) for _ in range(out.dim() - 2)), NEVER)


Rule: TypeAlias = Callable[[Call, Tensor], Dims]

RULES: dict[Sizes, Rule] = {
    Sizes.BROADCAST: broadcast,
    Sizes.SAME: alike,
    Sizes.INHERIT: inherit,
    Sizes.OTHER: like_other,
    Sizes.VIEW: viewed,
    Sizes.EXPAND: expanded,
    Sizes.REPEAT: repeated,
    Sizes.PERMUTE: permuted,
    Sizes.TRANSPOSE: transposed,
    Sizes.REVERSE: turned,
    Sizes.MOVE: moved,
    Sizes.UNSQUEEZE: unsqueezed,
    Sizes.SQUEEZE: squeezed,
    Sizes.FLATTEN: flattened,
    Sizes.UNFLATTEN: unflattened,
    Sizes.DROP: without,
    Sizes.REDUCE: reduced,
    Sizes.NORM: norm,
    Sizes.TOP: top,
    Sizes.JOIN: joined,
    Sizes.STACK: stacked,
    Sizes.SPLIT: split,
    Sizes.PRODUCT: product,
    Sizes.LINEAR: linear,
    Sizes.CONVOLVE: convolved,
    Sizes.PAD: padded,
    Sizes.RESIZE: resized,
    Sizes.UNFOLD: unfolded,
    Sizes.LOOK_UP: embedded,
    Sizes.ATTENTION: attention,
    Sizes.EINSUM: einsum,
    Sizes.RECURRENT: recurrent,
    Sizes.INDEX: indexed,
    Sizes.BY_INDEX: by_index,
    Sizes.WHERE: chosen,
    Sizes.COPIES: copied,
    Sizes.BY_VALUE: by_value,
}
"""The rule of each word of the operator table."""

UNLISTED: dict[str, Rule] = {
    "getattr": attribute,
    "meshgrid": grid,
    **dict.fromkeys(("zeros", "ones", "empty", "rand", "randn", "full"), created),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full"), created_beside),
    **dict.fromkeys(("std_mean", "median", "nanmean", "nansum", "count_nonzero"), reduced),
    **dict.fromkeys(SIZED_BY_VALUE, by_value),
    **dict.fromkeys(("tensor", "as_tensor", "asarray"), made),
}
"""The rules of functions of Python and torch that have no row, by name."""
