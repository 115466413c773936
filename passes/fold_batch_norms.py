"""Fold batch norms into the convolution or linear layer before them, or into those behind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import nn

from fxquant import ops
from fxquant.graph.absent_names import FOLDED
from fxquant.graph.meta import TensorSpec
from fxquant.graph.moved_channels import channel_pairs, mapped, moved_from, moved_to
from fxquant.graph.pass_infra import Fact, Pass
from fxquant.graph.pass_log import Gone
from fxquant.graph.rewriter import producer
from fxquant.nn.dense import Dense
from fxquant.nn.folded_norm import keep_norm
from fxquant.nn.live_norm import LIVE_NORM, LiveNorm
from fxquant.nn.norm_folding import folded, folded_behind, norm_as_affine
from fxquant.nn.stored_tensors import tensors_read
from fxquant.placement.regions import find_regions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, fx

    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class FoldBatchNorms(Pass):
    """A batch norm disappears into the layer whose output only it reads.

    Before::

        %conv = conv2d[features.0](%x)
        %bn   = batch_norm[features.1](%conv)

    After::

        %conv = conv2d[features.0](%x)

    with the weight `W * gamma / sigma` and the bias `beta + (b - mu) * gamma / sigma`, computed in
    double precision. Where that cannot be, it disappears into the layers that read it, if all of
    them can take it in: `W * (gamma / sigma)` by input channels, and
    `b + W (beta - mu * gamma / sigma)`. Reshapes, permutations and the like may stand between the
    two. An `nn.Identity` stays in the module tree at the batch norm's place, so that indices of a
    `Sequential` keep their meaning.

    Args:
        live: the layer keeps the batch norm as `live_norm`, which goes on learning: the layer folds
            it anew with every call (`fxquant.nn.live_norm`). For training. What does not stand
            right behind its layer stays a batch norm then.
    """

    live: bool = False

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.MODULES_ONLY, Fact.UNIQUE_MODULES})

    def run(self, rw: Rewriter) -> None:
        """Fold wherever it is right."""
        if self.live:
            _fold_live(rw)
        else:
            fold_batch_norms(rw)


class Folded(NamedTuple):
    """A batch norm that was folded.

    Attributes:
        layer: path of the layer that took it in.
        norm: path of the batch norm.
        direct: whether it read the layer's output as it was, channel by channel.
    """

    layer: str
    norm: str
    direct: bool


def fold_batch_norms(rw: Rewriter) -> list[Folded]:
    """Fold wherever it is right; what was folded, in order."""
    pairs: list[Folded] = []
    for node in _norms(rw):
        found = layer_before(rw, node)
        if isinstance(found, str):
            after = _norm_objection(rw, node) or layers_behind(
                rw, node, 1, shifts=_shifts(rw, node)
            )
            if isinstance(after, str):
                rw.skip(node, found if after == _NO_LAYER else f"{found}; {after}")
                continue
            _fold_behind(rw, node, after)
            pairs += [Folded(str(layer.target), str(node.target), False) for layer, _ in after]
            continue
        direct = producer(node, rw.gm) is found[0]
        pairs.append(Folded(str(found[0].target), str(node.target), direct))
        _fold(rw, node, *found)
    return pairs


def _fold_live(rw: Rewriter) -> None:
    for node in _norms(rw):
        found = layer_before(rw, node)
        if isinstance(found, str):
            rw.skip(node, found)
        elif producer(node, rw.gm) is not found[0]:
            rw.skip(node, f"it does not stand right behind {found[0].target}")
        else:
            _keep_alive(rw, node, found[0])


def _norms(rw: Rewriter) -> Iterator[fx.Node]:
    """The batch norms that may be folded."""
    regions = find_regions(rw.gm)
    for node in rw.nodes:
        row = rw.op(node)
        if row is None or row.name != "batch_norm":
            continue
        if regions is not None and not regions.holds(node):
            rw.skip(node, "it lies outside of the quantized regions")
        else:
            yield node


# a layer, and for each of its channels the one of the batch norm
_Place: TypeAlias = "tuple[fx.Node, Tensor]"
_NO_LAYER = "no layer that could take it in reads it"


def layer_before(rw: Rewriter, node: fx.Node) -> _Place | str:
    """The layer in front of a batch norm that can take it in, or why there is none.

    Returns:
        The layer and, for each of its output channels, that of the batch norm, int64 `[O]`.
    """
    first = producer(node, rw.gm)
    if first is None:
        return "nothing computes its input"
    *moves, layer = moved_from(first, rw.gm)
    if rw.module(layer) is None:
        return "no layer computes its input"
    row = rw.op(layer)
    if row is None or row.weight_use is not ops.WeightUse.SUMS:
        return f"{layer.target} before it is no convolution or linear layer"
    below = node
    for past in (*moves, layer):
        others = [u.name for u in past.users if u is not below and not _is_size(u)]
        if others:
            return f"{past.target} is also read by {', '.join(others)}"
        below = past
    reason = _norm_objection(rw, node) or _layer_objection(rw, layer)
    if reason:
        return reason
    axis = channel_axis(rw, layer)
    channels = mapped(channel_pairs(layer, axis, moves[::-1], 1, rw.gm), 0, rw.shape(layer)[axis])
    if channels is None:
        where = "last dimension" if axis == -1 else "channels"
        return f"its channels are not the {where} of what {layer.target} puts out"
    return layer, channels


def layers_behind(rw: Rewriter, node: fx.Node, axis: int, *, shifts: bool) -> list[_Place] | str:
    """The layers that can take in what is done to the channels of a value, or why there are none.

    Args:
        rw: reads the graph.
        node: makes the value.
        axis: dimension of its channels.
        shifts: whether constants are added, which zeros in a padding do not get.

    Returns:
        Layers and, for each of their input channels, that of the value, int64 `[I]`.
    """
    consumers = list(moved_to(node, rw.gm))
    rows = [rw.op(layer) for _, layer in consumers]
    others = [
        layer.name
        for (_, layer), row in zip(consumers, rows, strict=True)
        if row is None or row.weight_use is not ops.WeightUse.SUMS
    ]
    if len(others) == len(consumers):
        return _NO_LAYER
    if others:
        return f"it is also read by {', '.join(others)}"
    reason = ""
    found: list[_Place] = []
    for path, layer in consumers:
        last = path[-1] if path else node
        reason = reason or _layer_objection(rw, layer, hooks=("_forward_pre_hooks",))
        reason = reason or _padding_objection(rw, layer, last, shifts=shifts)
        if reason:
            return reason
        theirs = channel_axis(rw, layer)
        pairs = channel_pairs(node, axis, path, theirs, rw.gm)
        channels = mapped(pairs, 1, rw.shape(last)[theirs])
        if channels is None:
            return f"its channels are not those that {layer.target} reads"
        found.append((layer, channels))
    return found


def channel_axis(rw: Rewriter, layer: fx.Node) -> int:
    """Dimension of a layer's channels, of its input and output, from the end."""
    module = rw.module(layer)
    rank = 2 if module is None else module.get_parameter("weight").dim()
    return 1 - rank


def _is_size(user: fx.Node) -> bool:
    spec = user.meta.get("spec")
    return user.op != "output" and not isinstance(spec, (TensorSpec, tuple, list))


def _norm_objection(rw: Rewriter, node: fx.Node) -> str:
    norm = rw.module(node)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return "its statistics are computed at run time"
    if norm.running_mean is None:
        return "it keeps no running statistics"
    return "a hook sits between the two" if norm._forward_hooks or norm._forward_pre_hooks else ""


def _layer_objection(
    rw: Rewriter, layer: fx.Node, hooks: tuple[str, ...] = ("_forward_hooks",)
) -> str:
    weighted = rw.module(layer)
    if weighted is None or not isinstance(getattr(weighted, "weight", None), nn.Parameter):
        stored = weighted is not None and "weight" in weighted._buffers
        found = "is no parameter" if stored else "is computed at run time"
        return f"the weight of {layer.target} {found}"
    if "bias" in weighted._buffers:
        return f"the bias of {layer.target} is no parameter"
    if isinstance(weighted, Dense) and weighted.weight.dim() != 2:
        return f"the weight of {layer.target} is no matrix"
    if _is_tied(rw, weighted):
        return f"{layer.target} shares its weight with another module"
    return "a hook sits between the two" if any(vars(weighted)[h] for h in hooks) else ""


def _shifts(rw: Rewriter, node: fx.Node) -> bool:
    """Whether a batch norm adds anything."""
    norm = rw.module(node, nn.modules.batchnorm._BatchNorm)
    return norm is not None and bool(norm_as_affine(norm)[1].any())


def _padding_objection(rw: Rewriter, layer: fx.Node, last: fx.Node, *, shifts: bool) -> str:
    """Why what is added to a value would not reach everything that a layer sums, or nothing."""
    if rw.arguments(layer).get("input") is not last:
        return f"{layer.target} reads it as something else than its input"
    module = _module(rw, layer)
    if not shifts or module is None:
        return ""
    row = rw.op(layer)
    if row is not None and row.weight_axis == 1:
        ones = (module.kernel_size, module.stride)
        whole = all(n == 1 for n in (*ones[0], *ones[1])) and not any(module.padding)
        return "" if whole else f"zeros between the inputs of {layer.target} are not shifted"
    padding = getattr(module, "_reversed_padding_repeated_twice", ())
    if any(padding) and getattr(module, "padding_mode", "zeros") == "zeros":
        return f"{layer.target} pads with zeros, which are not shifted"
    return ""


def _module(rw: Rewriter, node: fx.Node) -> Any:
    """The module of a node, of whichever class."""
    return rw.module(node)


def _is_tied(rw: Rewriter, module: nn.Module) -> bool:
    """Whether something else computes with the layer's weight or bias, too."""
    mine = {id(p) for p in module._parameters.values() if p is not None}
    owners = (m for m in rw.gm.modules() if not mine.isdisjoint(map(id, m._parameters.values())))
    if all(m is module for m in owners) and not rw.gm.graph.find_nodes(op="get_attr"):
        return False  # the cheap answer for most
    uses = Counter(id(value) for value in tensors_read(rw.gm))
    return any(uses[key] > 1 for key in mine)


@torch.no_grad()
def _fold(rw: Rewriter, node: fx.Node, layer: fx.Node, channels: Tensor) -> None:
    norm, weighted = rw.module(node, nn.modules.batchnorm._BatchNorm), rw.module(layer)
    if norm is None or weighted is None:
        return
    _give(rw, layer, weighted, folded(weighted, norm, ops.weight_axis(weighted), channels))
    rw.edit(keep_norm, weighted, norm)
    rw.explain(layer, f"batch norm {node.target} was folded into its weight and bias")
    drop_norm(rw, node)


@torch.no_grad()
def _fold_behind(rw: Rewriter, node: fx.Node, layers: list[_Place]) -> None:
    norm = rw.module(node, nn.modules.batchnorm._BatchNorm)
    for layer, channels in layers:
        weighted = rw.module(layer)
        if norm is None or weighted is None:
            return
        axis = ops.weight_axis(weighted)
        _give(rw, layer, weighted, folded_behind(weighted, norm, axis, channels))
        rw.explain(layer, f"batch norm {node.target} before it was folded into its weight and bias")
    drop_norm(rw, node)
    rw.gone[str(node.target)] = Gone(FOLDED, ", ".join(str(layer.target) for layer, _ in layers))


def _give(rw: Rewriter, layer: fx.Node, module: nn.Module, values: dict[str, Tensor]) -> None:
    grad = module.get_parameter("weight").requires_grad
    for name, value in values.items():
        rw.set_parameter(module, name, value, grad)


def drop_norm(rw: Rewriter, node: fx.Node) -> None:
    """Take a batch norm that was folded out of the graph; an identity stays in its place."""
    rw.set_module(str(node.target), nn.Identity())
    before = producer(node, rw.gm)
    if before is not None:
        rw.replace(node, before, FOLDED)


def _keep_alive(rw: Rewriter, node: fx.Node, layer: fx.Node) -> None:
    norm, weighted = rw.module(node, nn.modules.batchnorm._BatchNorm), rw.module(layer)
    if norm is None or weighted is None:
        return
    if weighted._parameters.get("bias") is None:
        zeros = torch.zeros_like(norm.running_mean)  # type: ignore[arg-type]
        rw.set_parameter(weighted, "bias", zeros, grad=False)
    rw.edit(weighted.add_module, LIVE_NORM, LiveNorm(norm, ops.weight_axis(weighted)))
    rw.explain(layer, f"batch norm {node.target} is folded into it with every call")
    drop_norm(rw, node)
