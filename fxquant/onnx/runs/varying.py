"""What may vary from one run of a graph to the next: the one decision that all stages share.

Which axes of the inputs follow the batch is found by trying (`candidates`), decided once by
`record`, and used by lowering, by torch's exporter for single nodes, and by the proof. Here is what
an input can look like in another run: other rows, other values.

Inputs of integers are mostly indices: rows of other tensors, words of a vocabulary. Other values
are therefore taken from the values that the same tensor has, and a batch that grows keeps every
index valid where a batch that is cut does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph.pytree import map_leaves, tensors

# 1 would hide dimensions behind broadcasting
CUT = (2, 3)
# rows among which values choose: with fewer, choices seldom differ; more take time
_FEW_ROWS, _MANY_ROWS = 8, 64
_NOISE = 0.25  # of the range of a tensor
_MOST_CANDIDATES = 12


@dataclass(frozen=True)
class Varying:
    """Which input axes may have another size.

    Attributes:
        batch: batch size of the example; None where no input has a first axis.
        followers: input tensors, counted through all containers, that have an axis of the batch.
        sizes: batch sizes that the graph was run at: two, or the example's own where it is fixed.
        reason: why the batch is fixed; empty if it is not.
        by_value: nodes whose sizes depend on values, in order.
        insisted: of the operators whose sizes depend on values those that the model could be run
            with no other size of; they are written with the example's.
        axes: the batch's axis in those followers where it is not the first, by number.
    """

    batch: int | None
    followers: frozenset[int] = frozenset()
    sizes: tuple[int, ...] = ()
    reason: str = ""
    by_value: tuple[str, ...] = ()
    insisted: tuple[str, ...] = ()
    axes: Mapping[int, int] = field(default_factory=dict)

    @property
    def dynamic(self) -> bool:
        """Whether the batch may have another size."""
        return len(self.sizes) > 1

    @property
    def cut(self) -> bool:
        """Whether the graph is known to run on fewer rows than the example has."""
        return self.dynamic and self.batch is not None and min(self.sizes) < self.batch

    def resized(self, values: Any, wanted: int) -> Any:
        """The same inputs with `wanted` rows, taken in turn from the rows they have."""

        def rows(number: int, tensor: Tensor) -> Tensor:
            if number not in self.followers:
                return tensor
            axis = self.axes.get(number, 0)
            taken = torch.arange(wanted, device=tensor.device) % tensor.shape[axis]
            return tensor.index_select(axis, taken)

        return _numbered(values, rows)


def size_notes(gm: fx.GraphModule, varying: Varying) -> list[str]:
    """What a report says about sizes that depend on values."""
    nodes = {node.name: node for node in gm.graph.nodes}

    def places(names: tuple[str, ...]) -> str:
        sources = (nodes[name].meta.get("source") for name in names)
        return ", ".join(f"{n} ({s})" if s else n for n, s in zip(names, sources, strict=True))

    notes = []
    if varying.by_value:
        notes.append(f"sizes that depend on values are dynamic: {places(varying.by_value)}")
    if varying.insisted:
        what = "the model could be run with no other size of what depends on values, which is fixed"
        notes.append(f"{what}: {places(varying.insisted)}")
    return notes


def candidates(values: Any, *, choosing: bool) -> Iterator[Varying]:
    """What might follow the batch, the likeliest first.

    Args:
        values: inputs of the example.
        choosing: whether values choose rows in the graph, which takes more rows to see.
    """
    found = tensors(values)
    whole = any(not t.is_floating_point() for t in found)
    batches = list(dict.fromkeys(t.shape[0] for t in found if t.dim() and t.shape[0]))
    tried = 0
    for batch in batches:
        for axes in _axes(found, batch):
            for sizes in _sizes(batch, whole=whole, choosing=choosing):
                if tried < _MOST_CANDIDATES:
                    later = {number: axis for number, axis in axes.items() if axis}
                    yield Varying(batch, frozenset(axes), sizes, axes=later)
                tried += 1


def _axes(found: Sequence[Tensor], batch: int) -> list[dict[int, int]]:
    """Which axis of which tensors may be the batch: the first of all, of one, or others."""
    first = {i: 0 for i, t in enumerate(found) if t.dim() and t.shape[0] == batch}
    # states of recurrent layers are [layers, batch, features]
    later = {i: 1 + list(t.shape[1:]).index(batch) for i, t in enumerate(found)
             if batch in t.shape[1:]}  # fmt: skip
    every: list[dict[int, int]] = []
    for axes in (first, dict(list(first.items())[:1]), later | first, first | later):
        if axes not in every:
            every.append(axes)
    return every


def _sizes(batch: int, *, whole: bool, choosing: bool) -> Iterator[tuple[int, int]]:
    many = max(batch, _FEW_ROWS)
    if choosing:
        rows = many if whole else min(many, _MANY_ROWS)
        yield rows, rows + 1
    yield CUT
    if batch >= CUT[0] and not choosing and (whole or batch <= _MANY_ROWS):
        # places among the rows, given or computed, may be any of the example's
        yield batch, batch + 1


def other_values(values: Any, varying: Varying, variant: int) -> Any:
    """The same inputs with other values of the same kinds and shapes.

    Floats: rows in another order, with noise, inside the range that the tensor has. Whole numbers
    and truth values: other values of the same tensor, row by row where it follows the batch; a
    vector in order stays so.

    Args:
        values: inputs.
        varying: which of them follow the batch.
        variant: 0, 1, 2 ...: which of the other values; equal numbers give equal values.
    """
    # a generator of its own: torch's is the user's
    rng = torch.Generator().manual_seed(variant)

    def other(number: int, tensor: Tensor) -> Tensor:
        if not tensor.numel() or not tensor.dim():
            return tensor
        if tensor.is_floating_point():
            return _other_floats(tensor, rng)
        if tensor.is_complex():
            return tensor.flip(0)
        axis = varying.axes.get(number, 0) if number in varying.followers else tensor.dim() - 1
        picks = torch.randint(0, tensor.shape[axis], (tensor.shape[axis],), generator=rng)
        if _is_ordered(tensor):
            picks = picks.sort().values
        return tensor.index_select(axis, picks.to(tensor.device))

    return _numbered(values, other)


def _is_ordered(tensor: Tensor) -> bool:
    """Whether it is a vector in order: where bags begin, lengths from the longest on."""
    steps = tensor.diff() if tensor.dim() == 1 and tensor.dtype is not torch.bool else None
    return steps is not None and bool((steps >= 0).all() or (steps <= 0).all())


def _other_floats(tensor: Tensor, rng: torch.Generator) -> Tensor:
    flat = tensor.detach().double().cpu()
    order = torch.randperm(tensor.shape[0], generator=rng)
    known = flat[torch.isfinite(flat)]
    if not known.numel():
        return tensor
    low, high = float(known.min()), float(known.max())
    noise = torch.randn(tensor.shape, generator=rng, dtype=torch.float64) * _NOISE * (high - low)
    moved = torch.where(torch.isfinite(flat), (flat[order] + noise).clamp(low, high), flat)
    return torch.where(torch.isfinite(moved), moved, flat).to(tensor.dtype).to(tensor.device)


def _numbered(values: Any, change: Callable[[int, Tensor], Tensor]) -> Any:
    """Every tensor replaced, given its number among all tensors."""
    count = -1

    def leaf(value: Any) -> Any:
        nonlocal count
        if not isinstance(value, Tensor):
            return value
        count += 1
        return change(count, value)

    return map_leaves(values, leaf)
