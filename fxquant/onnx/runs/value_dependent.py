"""Operators whose results are as large as values say: which values, and other ones in their place.

`nonzero`, an index by a mask, `unique` and their kin are named by their rows (`sized_by`). To learn
what follows such a size, a graph is run with other values at the place that decides it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxquant import ops
from fxquant.nn.opaque import Opaque

_MASKS = (torch.bool, torch.uint8)
_SHAPE_METHODS = frozenset({"size", "dim", "numel", "ndimension", "nelement", "element_size"})
_LIKE = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})
_LIKE_FUNCTIONS = (torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, len)
_SHAPE_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "is_cuda"})


@dataclass(frozen=True)
class SizeSource:
    """A node whose values decide the size of another's result.

    Attributes:
        node: the node whose values decide.
        consumer: the operator.
        how: by what of the values.
    """

    node: fx.Node
    consumer: fx.Node
    how: ops.Sized

    @property
    def decides_nothing(self) -> bool:
        """Whether it is known, without running, that the values are positions and no mask."""
        dtype = getattr(self.node.meta.get("spec"), "dtype", None)
        return self.how is ops.Sized.MASK and dtype is not None and dtype not in _MASKS

    def count(self, value: Any) -> int | None:
        """The size that these values give; None where they decide none (an index that is no mask).

        The size is told from other sizes, not computed exactly: `unique` along an axis has fewer.
        """
        if not isinstance(value, Tensor) or (
            self.how is ops.Sized.MASK and value.dtype not in _MASKS
        ):
            return None
        if self.how is ops.Sized.SUM:
            return int(value.sum())
        if self.how is ops.Sized.DISTINCT:
            return len(value.unique())
        if self.how is ops.Sized.LARGEST:
            return int(value.max()) if value.numel() else 0
        return int(torch.count_nonzero(value))

    def other(self, value: Tensor, variant: int) -> Tensor:
        """Values of the same shape that give another size, valid where these are."""
        if not value.numel():
            return value
        if self.how in (ops.Sized.NONZERO, ops.Sized.MASK):
            return _other_mask(value, variant)
        flat = value.clone().flatten()
        if self.how is ops.Sized.SUM:
            flat[: variant + 1] += 1
        else:
            # a value fewer: every one is still one that the operand had
            flat[flat == flat.max()] = flat.min()
        return flat.view(value.shape)


def size_sources(gm: fx.GraphModule, following: Iterable[fx.Node]) -> list[SizeSource]:
    """Every place where input values decide a size, in the order of the graph.

    Args:
        gm: the graph.
        following: nodes whose values follow the values of inputs.
    """
    follow = set(following)
    found = []
    for node in gm.graph.nodes:
        fact = _fact(node, gm)
        if fact is not None:
            operands: list[fx.Node] = []
            fx.node.map_arg(fact[0], operands.append)
            sources = [SizeSource(n, node, fact[1]) for n in operands if n in follow]
            found += [s for s in sources if not s.decides_nothing]
    return found


def _fact(node: fx.Node, gm: fx.GraphModule) -> tuple[Any, ops.Sized] | None:
    """The argument that decides the size of a node's result, and how; None for most nodes."""
    row = ops.row_of(node, gm)
    if row is None:
        how = ops.SIZED_BY_VALUE.get(_name(node, gm).rpartition(".")[2])
        return (node.args[:1], how) if how else None
    if row.sized_by is None:
        return None
    name, how = row.sized_by
    try:
        arguments = ops.arguments(node, gm)
    except TypeError:
        # lowering refuses the node with its line
        return None
    if row.sized_open is not None:
        argument, left_open = row.sized_open
        if arguments.get(argument, left_open) != left_open:
            return None
    return arguments.get(name), how


def _name(node: fx.Node, gm: fx.GraphModule) -> str:
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        return module.name if isinstance(module, Opaque) else ""
    return str(getattr(node.target, "__name__", node.target))


def _other_mask(value: Tensor, variant: int) -> Tensor:
    """Another share of nonzero elements; of every second variant the same number in every row.

    A model may reshape what a mask chose back to its rows.
    """
    by_rows = variant % 2 == 1 and value.dim() > 1
    length = value.shape[-1] if by_rows else value.numel()
    before = int(torch.count_nonzero(value)) // (value.numel() // length)
    wanted = (before + 1 + variant // 2 % length) % (length + 1)
    spread = (torch.arange(length, device=value.device) * wanted) // length
    row = torch.ones(length, dtype=torch.bool, device=value.device)
    row[:-1] = spread[1:] > spread[:-1]
    if not wanted:
        row[:] = False
    mask = row.expand(value.shape) if by_rows else row.view(value.shape)
    ones = torch.where(value != 0, value, torch.ones_like(value))
    return torch.where(mask, ones, torch.zeros_like(value))


def following_values(gm: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose value depends on the value, not only on the shape, of an input."""
    found: set[fx.Node] = set()
    for node in gm.graph.nodes:
        follows = any(n in found for n in node.all_input_nodes) and not _reads_shape(node)
        if node.op == "placeholder" or follows:
            found.add(node)
    return found


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target) in _SHAPE_METHODS | _LIKE
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _SHAPE_ATTRIBUTES
    return node.target in _LIKE_FUNCTIONS
