"""Which dimensions of a result can have another size in another run.

A batch size must stay dynamic, a number of channels is fixed by the weights. Knowing which is
which keeps graphs free of size arithmetic that can never change, and ``1 / sqrt(head_size)`` a
plain number. An operator without a rule here gives the largest change of its inputs: a rule may
only err towards "can change".
"""

from __future__ import annotations

from torch import Tensor

from fxquant import ops
from fxquant.tracing.shape_rules import RULES, UNLISTED, Call, Dims, broadcast, largest


def result_dims(call: Call, out: Tensor) -> Dims:
    """Per dimension of one tensor of a call's result: what can change its size."""
    row = ops.TABLE.named(call.name)
    rule = RULES[row.sizes] if row is not None else UNLISTED.get(call.name, broadcast)
    try:
        found = rule(call, out)
    except (LookupError, TypeError, ValueError):
        # a spelling that the rule does not know
        found = ()
    return found if len(found) == out.dim() else largest(call, out)
