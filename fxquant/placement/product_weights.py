"""Stored tensors that products multiply with: whether they are weights, and taking them in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant.graph.alias_analysis import written
from fxquant.placement.dataflow import is_float_spec

if TYPE_CHECKING:
    from torch import Tensor, fx

    from fxquant.graph.rewriter import Rewriter
    from fxquant.placement.regions import Regions

# rows that multiply one matrix, or a batch of them, with another
PRODUCTS = frozenset({"matmul", "bmm"})
# moves of axes that a stored weight may be read through
AXIS_MOVES = frozenset({
    "t", "transpose", "swapdims", "adjoint", "permute", "movedim", "contiguous",
})  # fmt: skip


def obstacle(
    node: fx.Node, x: Any, weight: Tensor, regions: Regions | None, changing: set[int]
) -> str:
    """Why a stored tensor is no weight of a linear layer, or nothing.

    Args:
        node: the product.
        x: what is multiplied.
        weight: the stored tensor.
        regions: what may be quantized, or None for everything.
        changing: ids of tensors that the network writes into.
    """
    if regions is not None and not regions.holds(node):
        return "it lies outside of the quantized regions"
    if id(weight) in changing:
        return "the network writes into what it multiplies with"
    specs: list[Any] = [n.meta.get("spec") for n in (node, x)]
    if not all(is_float_spec(s) and s.dtype == weight.dtype for s in specs):
        return "its operands are of several types"
    return ""


def written_tensors(rw: Rewriter) -> set[int]:
    """Ids of the stored tensors that the network writes into."""
    targets = (written(node, rw.gm) for node in rw.nodes)
    return {id(rw.constant(node)) for node in targets if node is not None}


def erase_unread(rw: Rewriter, operand: fx.Node) -> None:
    """Erase a stored tensor that nothing reads any more, and the moves that it was read through."""
    node = operand
    while not node.users and node.op in ("get_attr", "call_module"):
        above = node.all_input_nodes
        rw.erase(node)
        if not above:
            return
        node = above[0]
