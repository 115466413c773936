"""Layers that read one value, and how its channels can be divided by factors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fxquant import ops
from fxquant.graph.rewriter import label
from fxquant.placement.dataflow import is_float_spec, origin
from fxquant.ptq.layers.columns import Product, product_of

if TYPE_CHECKING:
    from fxquant.ptq.cross_layer.channel_spaces import ChannelSpaces
    from fxquant.ptq.cross_layer.scalable_layers import ScalableLayer
    from fxquant.targets import Target


@dataclass(frozen=True)
class Read:
    """A layer that reads a value.

    Attributes:
        index: its place among the layers of the spaces.
        layer: the layer.
        product: how it multiplies.
        operand: the node whose value it reads.
        factors: for every input channel its place among the factors of the group, int64 `[I]`.
    """

    index: int
    layer: ScalableLayer
    product: Product
    operand: fx.Node
    factors: Tensor

    def columns(self, factors: Tensor) -> Tensor:
        """Factors of a group as those of the columns of this layer's matrix: `[F] -> [G, D]`."""
        weight = self.product.matrix(self.layer.module.get_parameter("weight"))
        groups, depth = weight.shape[0], weight.shape[-1]
        channels = factors[self.factors].reshape(groups, -1, 1)
        return channels.expand(-1, -1, depth // channels.shape[1]).reshape(groups, depth)


@dataclass(frozen=True)
class Group:
    """Layers whose input channels are divided by the same factors.

    Attributes:
        reads: the layers.
        ids: the factors among those of the spaces, int64 `[F]`; empty if nothing takes them in and
            a multiplication has to stand in front of the layers.
        count: number of factors.
        producers: paths of the layers and norms that take the factors in.
        reason: why nothing can be divided; empty if it can.
    """

    reads: tuple[Read, ...]
    ids: Tensor
    count: int
    producers: tuple[str, ...] = field(default=())
    reason: str = ""

    @property
    def folds(self) -> bool:
        """Whether a producer takes the factors in."""
        return bool(len(self.ids))

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of the layers."""
        return tuple(r.layer.path for r in self.reads)


def groups_of(
    spaces: ChannelSpaces, gm: fx.GraphModule, target: Target, *, multiply: bool
) -> list[Group]:
    """Groups in the order of the graph; every scalable layer is in one.

    Args:
        spaces: which channels have the same factor.
        gm: the graph.
        target: the runtime, where a multiplication in integers would round the factors.
        multiply: whether a multiplication may be put in front of layers.
    """
    by_operand: dict[fx.Node, list[int]] = {}
    for index, layer in enumerate(spaces.layers):
        operand = ops.arguments(layer.node, gm)["input"]
        if not layer.is_norm and product_of(layer.module) is not None:
            by_operand.setdefault(operand, []).append(index)
    free = {int(f) for space in spaces.spaces for f in space.factors}
    makers = {int(f): s.producers for s in spaces.spaces for f in s.factors}
    found: list[Group] = []
    for members in _joined(spaces, list(by_operand.values()), free):
        ids = torch.cat([spaces.inputs[i] for i in members]).unique()
        if {int(i) for i in ids} <= free:
            made = sorted({p for i in ids for p in makers[int(i)]})
            paths = tuple(spaces.layers[p].path for p in made)
            reads = tuple(
                _read(spaces, gm, i, torch.searchsorted(ids, spaces.inputs[i])) for i in members
            )
            found.append(Group(reads, ids, len(ids), paths))
            continue
        count = len(spaces.inputs[members[0]])
        reads = tuple(_read(spaces, gm, i, torch.arange(count)) for i in members)
        reason = "what makes its input is also read by others" if not multiply else ""
        reason = reason or _objection(reads, gm, target)
        found.append(Group(reads, ids[:0], count, (), reason))
    return found


def _read(spaces: ChannelSpaces, gm: fx.GraphModule, index: int, factors: Tensor) -> Read:
    layer = spaces.layers[index]
    product = product_of(layer.module)
    if product is None:
        raise LookupError(layer.path)
    return Read(index, layer, product, ops.arguments(layer.node, gm)["input"], factors)


def _joined(spaces: ChannelSpaces, groups: list[list[int]], free: set[int]) -> list[list[int]]:
    """Groups of layers by operand, made one where they have free factors in common."""
    done: list[tuple[set[int], list[int]]] = []
    for members in groups:
        ids = {int(f) for i in members for f in spaces.inputs[i]}
        if not ids <= free:
            done.append((set(), members))
            continue
        rest = []
        for other, theirs in done:
            if other & ids:
                ids, members = ids | other, theirs + members
            else:
                rest.append((other, theirs))
        done = [*rest, (ids, members)]
    return sorted((sorted(members) for _, members in done), key=lambda m: m[0])


def _objection(reads: tuple[Read, ...], gm: fx.GraphModule, target: Target) -> str:
    """Why no multiplication is put in front of layers, or nothing."""
    producer = origin(reads[0].operand, gm)[0]
    row = ops.row_of(producer, gm)
    if any(r.product.dims for r in reads):
        return "a multiplication in front of a convolution costs more than it gains"
    if row is None or not is_float_spec(reads[0].operand.meta.get("spec")):
        return f"{label(producer)} is no operator of the network"
    if row.name in target.operators:
        return f"{label(producer)} is computed in integers, a multiplication would round factors"
    return ""
