"""Writes into tensors: ONNX has values only, so a write that somebody sees has no form there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx

from fxquant.errors import ExportError
from fxquant.graph.alias_analysis import aliases, disjoint, written


def check_writes(gm: fx.GraphModule, needed: set[fx.Node]) -> None:
    """Refuse a graph in which a written tensor is read again under its old name.

    Args:
        gm: the graph.
        needed: nodes that the outputs depend on.

    Raises:
        ExportError: FXQ529, the model changes a buffer that it reads, or a tensor that it reads
            later.
    """
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for node in gm.graph.nodes:
        target = written(node, gm)
        if target is not None:
            for alias in aliases(target, gm):
                what = _seen(node, target, alias, order, needed, gm)
                if what:
                    fix = "compute a new tensor instead of writing into this one"
                    raise ExportError("FXQ529", what, at=node, fix=fix)


def _seen(
    node: fx.Node, target: fx.Node, alias: fx.Node, order: dict[fx.Node, int],
    needed: set[fx.Node], gm: fx.GraphModule,
) -> str | None:  # fmt: skip
    """How a write shows in the outputs, or None."""
    if alias.op == "get_attr":
        # what is only written, such as a counter of calls, changes no output
        read = alias in needed
        return f"it changes {alias.target}, which the outputs depend on" if read else None
    now = order[node]
    if order[alias] >= now or disjoint(alias, target, gm):
        return None
    late = [user for user in alias.users if order[user] > now and user in needed]
    if not late:
        return None
    return f"it writes into {alias.name}, which {late[0].name} reads afterwards"


def writes_somewhere(gm: fx.GraphModule) -> bool:
    """Whether any node writes into a tensor."""
    return any(written(node, gm) is not None for node in gm.graph.nodes)


@contextmanager
def preserved(gm: fx.GraphModule) -> Iterator[None]:
    """Parameters and buffers as they were, if the graph writes into any tensor."""
    held = (*gm.parameters(), *gm.buffers()) if writes_somewhere(gm) else ()
    state = [(t, t.detach().clone()) for t in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in state:
                if not _equal(tensor, before):
                    tensor.copy_(before)


def _equal(a: Tensor, b: Tensor) -> bool:
    # copying raises the version counter, which tells others that the weights changed
    return a.shape == b.shape and torch.equal(a, b)
