"""Which grids are there for the rows of tokens, and choose their ranges by what a token loses.

A transformer normalizes every token by itself, behind a residual sum that stays in floating point.
What an error costs there is its share of the token, not its size: in trained networks a few tokens
(a separator, the first one) are hundreds of times as strong as the others, and a range that serves
their largest values best rounds away the others'. Where integers are there for linear layers only,
the range is therefore the one with the least relative squared error of a token.

Measured on MiniLM-L6 with trained weights, W8A8, 512 sentences: 18.5 dB and a cosine of 0.9930
without this, 19.3 dB and 0.9942 with it. Values that integer kernels write keep the usual choice:
others read them, and a convolution's positions are not normalized one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant import ops
from fxquant.placement.dataflow import slot_spec

if TYPE_CHECKING:
    from torch import fx

    from fxquant.placement.dataflow import Slot
    from fxquant.placement.integer_reads import IntegerReads
    from fxquant.placement.plan import Plan


def choose_by_token(gm: fx.GraphModule, plan: Plan, reads: IntegerReads) -> None:
    """Set `by_token` of the grids of values `[..., tokens, features]` that it is for.

    Args:
        gm: prepared graph with recorded specs.
        plan: its grids are decided.
        reads: who reads values in integers.
    """

    def is_for_tokens(slot: Slot) -> bool:
        node, shape = slot[0], tuple(getattr(slot_spec(slot), "shape", ()))
        if node.op != "call_module" or node in plan.kernels or node in plan.absorbed:
            return False
        kernels = reads.integer_kernels(node)
        return len(shape) > 2 and bool(kernels) and all(reads_tokens(k, shape[-1]) for k in kernels)

    def reads_tokens(kernel: fx.Node, features: int) -> bool:
        row = ops.row_of(kernel, gm)
        if row is None or row.sizes is not ops.Sizes.LINEAR:
            return False
        spec = ops.arguments(kernel, gm)["input"].meta.get("spec")
        return bool(spec is not None and spec.shape[-1] == features)

    for grid in plan.grids:
        grid.by_token = all(map(is_for_tokens, grid.slots))
        if grid.by_token:
            reason = "its range: least relative error of a token, only linear layers read it"
            plan.why.setdefault(grid.slots[0][0], []).append(reason)
