"""High-bias absorption: what nearly all activations exceed goes into the layers that read them.

Before a ReLU a channel has the distribution that its batch norm gave it: mean `beta`, standard
deviation `gamma`. What lies `c = max(0, beta - 3 gamma)` above zero for 99.87 % of a normal
distribution is taken from the layer's bias and added to the biases behind: `W2 relu(y) + b2` is
`W2 relu(y - c) + (b2 + W2 c)` for every `y >= c`. The range of the activation shrinks by `c`.

A padding with zeros gets no `c`, so layers that pad so take nothing in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.graph.moved_channels import moved_to
from fxquant.graph.rewriter import Rewriter
from fxquant.passes.fold_batch_norms import channel_axis, layers_behind

if TYPE_CHECKING:
    from collections.abc import Mapping

# standard deviations below the mean: 99.87 % of a normal distribution lie above
_DEVIATIONS = 3.0


@dataclass(frozen=True)
class Absorbed:
    """What became of one layer's high biases.

    Attributes:
        layer: its path.
        consumers: paths of the layers that took them in.
        channels: how many channels had one.
        largest: the largest of them.
        reason: why nothing was absorbed; empty if it was.
    """

    layer: str
    consumers: tuple[str, ...]
    channels: int
    largest: float
    reason: str

    def __str__(self) -> str:
        if self.reason:
            return f"{self.layer}: no bias absorbed, {self.reason}"
        into = ", ".join(self.consumers)
        return f"{self.layer}: biases of {self.channels} channels, up to {self.largest:.3g}, " + (
            f"went into {into}"
        )


def absorb_high_biases(
    gm: fx.GraphModule, norms: Mapping[str, nn.Module], scales: Mapping[str, Tensor]
) -> tuple[Absorbed, ...]:
    """Move high biases behind the ReLUs of layers whose batch norms were folded, in place.

    Args:
        gm: the prepared graph.
        norms: the batch norm that was folded into a layer, by the layer's path.
        scales: what a layer's outputs were multiplied by since then, float64 `[O]`, by path.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.3, equations 14 to 16.
    """
    rw = Rewriter(gm, "absorb_high_bias")
    found = []
    for node in rw.nodes:
        norm = norms.get(str(node.target)) if node.op == "call_module" else None
        if norm is not None:
            found.append(_absorb(rw, node, norm, scales.get(str(node.target))))
    return tuple(found)


def _absorb(rw: Rewriter, node: fx.Node, norm: nn.Module, scale: Tensor | None) -> Absorbed:
    path, module = str(node.target), rw.module(node)
    bias = None if module is None else module._parameters.get("bias")
    if bias is None:
        return Absorbed(path, (), 0, 0.0, "it has no bias")
    high = _high(norm, scale).to(bias.device)
    if not bool((high > 0).any()):
        return Absorbed(path, (), 0, 0.0, "no channel is far above zero")
    user = _relu(rw, node)
    if user is None:
        return Absorbed(path, (), 0, 0.0, "what reads it is not one ReLU alone")
    layers = layers_behind(rw, user, channel_axis(rw, node), shifts=True)
    if isinstance(layers, str):
        return Absorbed(path, (), 0, 0.0, layers)
    with torch.no_grad():
        for layer, channels in layers:
            _add(rw, layer, high[channels.to(high.device)])
        bias.copy_(bias.double() - high)
    consumers = tuple(str(layer.target) for layer, _ in layers)
    return Absorbed(path, consumers, int((high > 0).sum()), float(high.max()), "")


def _relu(rw: Rewriter, node: fx.Node) -> fx.Node | None:
    """The ReLU that alone reads a layer, also through the identity that a batch norm has left."""
    consumers = list(moved_to(node, rw.gm))
    if len(consumers) != 1:
        return None
    path, user = consumers[0]
    rows = [rw.op(n) for n in (*path, user)]
    names = [row.name if row is not None else "" for row in rows]
    return user if names == ["identity"] * len(path) + ["relu"] else None


def _high(norm: nn.Module, scale: Tensor | None) -> Tensor:
    """`max(0, beta - 3 |gamma|)` of the layer's output as it is scaled now, float64 `[O]`."""
    gamma, beta = norm._parameters.get("weight"), norm._parameters.get("bias")
    if beta is None:
        return torch.zeros(int(norm.num_features), dtype=torch.float64)  # type: ignore[arg-type]
    spread = torch.ones_like(beta) if gamma is None else gamma.detach().abs()
    high = (beta.detach().double() - _DEVIATIONS * spread.double()).clamp(min=0)
    return high if scale is None else high * scale.to(high.device)


def _add(rw: Rewriter, layer: fx.Node, constants: Tensor) -> None:
    """Add to a layer's bias what its weight makes of constants, `[I]`."""
    module = rw.module(layer)
    if module is None:
        return
    weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
    groups = int(getattr(module, "groups", 1))
    grouped = (
        weight.double().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(-1)
    )
    grouped = grouped.transpose(1, 2) if ops.weight_axis(module) == 1 else grouped
    added = (grouped * constants.reshape(groups, 1, -1)).sum(-1).reshape(-1)
    if bias is None:
        rw.set_parameter(module, "bias", added.to(weight.dtype), weight.requires_grad)
    else:
        bias.copy_(bias.double() + added)
