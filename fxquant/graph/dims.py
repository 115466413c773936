"""Which dimensions of a result can have another size in another run.

A batch size must stay dynamic, a number of channels is fixed by the weights; knowing which is
which keeps graphs free of size arithmetic that can never change, and keeps ``1 / sqrt(head_size)`` a
plain number. The rules may only err towards "can change".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from fxquant.graph.sizes import Change

Dims: TypeAlias = tuple[Change, ...]


def result_dims(inputs: list[tuple[Tensor, Dims]], sized: Change, out: Tensor) -> Dims:
    """Per dimension of ``out``: what can change its size.

    Args:
        inputs: the tensors of the call with their own dims.
        sized: the largest change among the numbers given as arguments.
        out: one tensor of the result.
    """
    most = max((change for _, dims in inputs for change in dims), default=Change.NEVER)
    return (max(most, sized),) * out.dim()
