"""Layers whose output and input channels can be multiplied by factors without a change of form."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.nn import dense
from fxquant.nn.dense import Dense
from fxquant.nn.stored_tensors import tensors_read

if TYPE_CHECKING:
    from collections.abc import Mapping

WEIGHTED = frozenset({dense.ROW}) | {
    f"{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3)
}
NORMS = frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"})


@dataclass(frozen=True)
class ScalableLayer:
    """A convolution, linear layer or the affine part of a norm.

    Attributes:
        node: its node.
        module: the module; its parameters are its own.
        row: name of its row in the operator table.
        outputs: ids of its output channels, `[O]`.
        inputs: ids of its input channels, `[I]`; none for a norm.
    """

    node: fx.Node
    module: nn.Module
    row: str
    outputs: Tensor
    inputs: Tensor

    @property
    def path(self) -> str:
        """Path of the module."""
        return str(self.node.target)

    @property
    def is_norm(self) -> bool:
        """Whether it is the affine part of a norm."""
        return self.row in NORMS

    @property
    def groups(self) -> int:
        """Groups of the convolution; 1 for others."""
        return int(getattr(self.module, "groups", 1))

    def grouped(self, weight: Tensor) -> Tensor:
        """A view of a weight as `[G, O / G, I / G, K]`."""
        groups = self.groups
        if ops.weight_axis(self.module) == 1:
            return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).transpose(
                1, 2
            )
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)

    def magnitudes(self) -> Tensor:
        """The largest weight of every pair of channels, float64 `[G, O / G, I / G]`."""
        return self.grouped(self.module.get_parameter("weight").detach()).abs().amax(-1).double()

    @torch.no_grad()
    def scale(self, outputs: Tensor, inputs: Tensor | None) -> None:
        """Multiply output and input channels, in place; float64 `[O]` and `[I]`."""
        weight, bias = self.module.get_parameter("weight"), self.module._parameters.get("bias")
        if self.is_norm:
            weight.copy_(weight.double() * outputs.reshape(weight.shape))
        else:
            grouped = self.grouped(weight)
            factors = outputs.reshape(self.groups, -1, 1, 1)
            if inputs is not None:
                factors = factors * inputs.reshape(self.groups, 1, -1, 1)
            grouped.copy_(grouped.double() * factors)
        if bias is not None:
            bias.copy_(bias.double() * outputs.reshape(bias.shape))


def unshared(gm: fx.GraphModule, names: Mapping[fx.Node, str]) -> set[fx.Node]:
    """The nodes, among those of `names`, whose weights are parameters that nothing else uses."""
    uses = Counter(id(value) for value in tensors_read(gm))
    return {n for n in names if _is_own(gm.get_submodule(str(n.target)), uses)}


def _is_own(module: nn.Module, uses: Counter[int]) -> bool:
    """Whether the weight (and bias) are plain parameters that only this node reads."""
    own = [module._parameters.get("weight"), module._parameters.get("bias")]
    if own[0] is None or not own[0].is_floating_point() or not own[0].is_contiguous():
        return False
    held = "bias" in module._parameters or getattr(module, "bias", None) is None
    return held and all(p is None or uses[id(p)] == 1 for p in own)


def layer_row(node: fx.Node, gm: fx.GraphModule) -> str | None:
    """Name of the row of a node that calls a scalable kind of module without hooks."""
    if node.op != "call_module":
        return None
    module = gm.get_submodule(str(node.target))
    row = ops.row_for_module(module)
    if row is None or row.name not in WEIGHTED | NORMS:
        return None
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if isinstance(module, Dense) and module.weight.dim() != 2:
        return None
    return row.name
