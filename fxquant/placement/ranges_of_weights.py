"""How many ranges a weight has: one, one a channel, or one a channel of each of its matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxquant import ops
from fxquant.nn.dense import Dense

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxquant.targets import OperatorRule


@dataclass(frozen=True)
class Ranges:
    """The ranges of a weight.

    Attributes:
        shape: how many lie along every axis; nothing: one for the tensor.
        blocks: elements of one range along every axis; None where only channels tell them apart.
        kind: for people.
    """

    shape: tuple[int, ...] = ()
    blocks: tuple[int, ...] | None = None
    kind: str = "per tensor"

    def __str__(self) -> str:
        return self.kind


def ranges_of(module: nn.Module, weight: Tensor, rule: OperatorRule) -> Ranges:
    """As many ranges as a target allows.

    The ranges of several matrices are blocks, as ONNX says it: a block is a column of a matrix.
    Integer kernels of onnxruntime take them like channels.

    Args:
        module: an operator with a weight.
        weight: its weight.
        rule: how the target computes it.
    """
    axes = ops.weight_axes(module) if rule.per_channel else ()
    if axes:
        kind = f"per channel on axis {', '.join(map(str, axes))}"
        return Ranges(_along(weight, axes), None, kind)
    if not isinstance(module, Dense) or not module.batch or not rule.per_matrix:
        return Ranges()
    several = (*module.batch, *module.outputs)
    shape = _along(weight, several)
    blocks = tuple(n // count for n, count in zip(weight.shape, shape, strict=True))
    return Ranges(shape, blocks, "per matrix and channel")


def _along(weight: Tensor, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n if i in axes else 1 for i, n in enumerate(weight.shape))
