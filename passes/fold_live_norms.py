"""Give layers the weights that they computed with their live batch norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fxquant.graph.pass_infra import Pass
from fxquant.nn.live_norm import LIVE_NORM, live_norm_of

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class FoldLiveNorms(Pass):
    """A batch norm that a layer folded in with every call is folded in for good.

    Before::

        %conv = conv2d[features.0](%x)    with the child `live_norm`

    After::

        %conv = conv2d[features.0](%x)

    The layer computes the same bits as before in evaluation.
    """

    @torch.no_grad()
    def run(self, rw: Rewriter) -> None:
        """Fold every one."""
        for node in rw.nodes:
            module = rw.module(node)
            live = None if module is None else live_norm_of(module)
            if module is None or live is None:
                continue
            values = live.folded(module)
            rw.edit(module._modules.pop, LIVE_NORM)
            for name, value in values.items():
                rw.set_parameter(module, name, value, grad=module.get_parameter(name).requires_grad)
            rw.explain(node, "its batch norm was folded in for good")
