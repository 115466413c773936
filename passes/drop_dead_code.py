"""Erase operations that nobody needs."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from fxquant import ops
from fxquant.graph.alias_analysis import written
from fxquant.graph.pass_infra import Pass
from fxquant.nn.functional import Functional

if TYPE_CHECKING:
    from torch import fx

    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class DropDeadCode(Pass):
    """Operations without consumers go, unless they have an effect.

    Before::

        %size = .size(%x, 0)
        %mean = mean[mean](%x)
        return %x

    After::

        return %x

    What may have an effect stays: writes into tensors, random numbers, batch norms, modules with
    hooks, and everything that has no row. Modules and parameters stay in the module tree.
    """

    def run(self, rw: Rewriter) -> None:
        """Walk backwards, so that what only dead code reads goes too."""
        for node in reversed(rw.nodes):
            if not node.users and _is_pure(rw, node):
                rw.erase(node)


def _is_pure(rw: Rewriter, node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return False
    if node.op == "get_attr":
        return True
    if written(node, rw.gm) is not None:
        return False
    module = rw.module(node)
    if module is not None:
        return _is_pure_module(module)
    if getattr(node.target, "__module__", None) in ("_operator", "operator", "math"):
        return node.target is not operator.setitem
    row = rw.op(node)
    return node.target in ("size", "dim", "numel") or (row is not None and row.effect is None)


def _is_pure_module(module: nn.Module) -> bool:
    row = ops.row_for_module(module)
    hooked = module._forward_hooks or module._forward_pre_hooks
    known = type(module).__module__.startswith("torch.nn.") or isinstance(module, Functional)
    return row is not None and row.effect is None and known and not hooked
