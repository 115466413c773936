"""The run of a calibration audit: data through the float model, and what is counted where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.errors import CalibrationError
from fxquant.graph.node_walk import node_values
from fxquant.graph.pytree import fresh_inputs
from fxquant.inspection.audit.audit_statistics import Channels, Input, Samples, Values
from fxquant.nn import QuantizationMixin
from fxquant.nn.folded_norm import FoldedNorm, kept_norm, norm_statistics
from fxquant.placement.dataflow import is_float_spec, operands, origin
from fxquant.ptq.layers.columns import product_of
from fxquant.ptq.walking.originals import float_value
from fxquant.ptq.walking.walk import FloatEnvironment
from fxquant.quantization.tensor import plain
from fxquant.tracing.signature import mismatch

if TYPE_CHECKING:
    from collections.abc import Iterator

_PRUNED = 1e-3  # of a layer's largest weight


@dataclass
class FirstNorm:
    """The first batch norm behind an input: what training has seen there.

    Attributes:
        node: the node whose values have these statistics.
        norm: its statistics.
        source: the input.
        channels: what the data have there, relative to the norm.
    """

    node: fx.Node
    norm: FoldedNorm
    source: fx.Node
    channels: Channels


@dataclass
class Clipping:
    """An activation that cuts values off, and what is known of the values that it gets.

    Attributes:
        node: the activation.
        source: the layer or batch norm before it.
        channels: its values.
        norm: statistics of its input in training, where a batch norm makes it.
    """

    node: fx.Node
    source: fx.Node
    channels: Channels
    norm: FoldedNorm | None


class AuditRun:
    """Runs data through the float model and counts.

    Attributes:
        samples: counts of samples.
        inputs: counts of each input.
        values: counts of each tensor on a grid; in a float model of what layers with weights read.
        firsts: the first batch norms.
        clippings: activations that cut values off.
        broken: the first node that made NaN or infinity of finite inputs, and the batch.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.environment = FloatEnvironment(gm, "float")
        self.holders = [n for n in gm.graph.nodes if n.op == "placeholder"]
        self.samples = Samples()
        self.inputs = {n: Input(n) for n in self.holders}
        self.norms = {n: found for n in gm.graph.nodes if (found := _norm(gm, n)) is not None}
        self.values = {n: Values(n, q) for n, q in _watched(gm)}
        self.firsts = {f.node: f for f in self._first_norms()}
        self.clippings = {c.node: c for c in self._clippings()}
        self.broken: tuple[fx.Node, int] | None = None

    def add(self, values: list[Any], count: int, index: int, *, forward: bool) -> None:
        """Count a batch; what is not finite does not run through the model.

        Args:
            values: of the placeholders in order.
            count: samples of the batch.
            index: number of the batch, from zero.
            forward: whether it runs through the model, too.
        """
        self.samples.add(values, count)
        good = True
        for holder, value in zip(self.holders, values, strict=True):
            if isinstance(value, Tensor) and value.is_floating_point():
                good &= self.inputs[holder].add(value)
        if forward and good:
            self._run(values, index)

    def _run(self, values: list[Any], index: int) -> None:
        try:
            for node, value in node_values(self.environment, fresh_inputs(values)):
                if isinstance(value, Tensor) and value.numel():
                    self._count(node, plain(value), index)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            given = {str(h.target): v for h, v in zip(self.holders, values, strict=True)}
            wrong = mismatch(self.gm, (), given, error)
            what = f"the model does not take batch {index}: {wrong.what}"
            raise CalibrationError("FXQ483", what, at=wrong.at, fix=wrong.fix) from error

    def _count(self, node: fx.Node, value: Tensor, index: int) -> None:
        watched, first = self.values.get(node), self.firsts.get(node)
        if watched is not None and not watched.add(value) and self.broken is None:
            self.broken = node, index
        wanted = first is not None or node in self.clippings
        if not wanted or not bool(value.isfinite().all()):
            return
        if first is not None:
            norm = first.norm
            rows = self._by_channels(node, value).double()
            first.channels.add((rows - norm.mean) / norm.deviation.clamp(min=1e-12))
        if node in self.clippings:
            clipping = self.clippings[node]
            clipping.channels.add(self._by_channels(clipping.source, value))

    def unreachable(self, clipping: Clipping) -> Tensor:
        """Channels whose layer makes nothing above zero of any input in its range, bool `[C]`.

        With weights `w`, bias `b` and inputs between `x0` and `x1` it makes at most
        `b + sum(w+) x1 + sum(w-) x0`. Channels that were pruned do not count.
        """
        dead = clipping.channels.constant()
        none, module = torch.zeros_like(dead), _module(self.gm, clipping.source)
        product, given = product_of(module), ops.arguments(clipping.source, self.gm).get("input")
        found = self.values.get(origin(given, self.gm)[0]) if isinstance(given, fx.Node) else None
        if product is None or found is None or not found.elements:
            return none
        weight = product.matrix(float_value(module, "weight")).double()
        low, high = min(found.low, 0.0), max(found.high, 0.0)  # zero: of the padding
        most = weight.clamp(min=0).sum(-1) * high + weight.clamp(max=0).sum(-1) * low
        if module._parameters.get("bias") is not None:
            most += float_value(module, "bias").double().reshape(most.shape)
        kept = weight.abs().amax(-1) > _PRUNED * weight.abs().max()
        return ((most <= 0) & kept).reshape(-1).to(dead.device)

    def _by_channels(self, node: fx.Node, value: Tensor) -> Tensor:
        """Values with the channels of the layer that made them last: `[N, C]`."""
        found = product_of(_module(self.gm, node))
        turned = found.by_channels(value) if found is not None else value.movedim(1, -1)
        return turned.reshape(-1, turned.shape[-1])

    def _first_norms(self) -> Iterator[FirstNorm]:
        """Batch norms with no other one between them and an input of real numbers."""
        sources: dict[fx.Node, fx.Node] = {}  # node that no norm is before -> the input behind it
        for node in self.gm.graph.nodes:
            if node.op == "placeholder" and is_float_spec(node.meta.get("spec")):
                sources[node] = node
            found = next((sources[n] for n in node.all_input_nodes if n in sources), None)
            if found is None:
                continue
            norm = self.norms.get(node)
            if norm is None:
                sources[node] = found
            elif norm.measured:
                yield FirstNorm(node, norm, found, Channels())

    def _clippings(self) -> Iterator[Clipping]:
        for node in self.gm.graph.nodes:
            row = ops.row_of(node, self.gm)
            source = next((n for _, n in operands(node, self.gm)), None)
            if row is None or not row.clips or source is None:
                continue
            made = product_of(_module(self.gm, source)) is not None or source in self.norms
            if made:
                yield Clipping(node, source, Channels(), self.norms.get(source))


def _module(gm: fx.GraphModule, node: fx.Node) -> nn.Module:
    return gm.get_submodule(str(node.target)) if node.op == "call_module" else nn.Identity()


def _norm(gm: fx.GraphModule, node: fx.Node) -> FoldedNorm | None:
    """What is known of a node's values from the batch norm that makes them, or that was folded."""
    module = _module(gm, node)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return norm_statistics(module)
    if "weight" not in module._parameters or module._parameters["weight"] is None:
        return None
    return kept_norm(module, float_value(module, "weight"))


def _watched(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, Any]]:
    """Tensors that lie on a grid, with its quantizer; in a float model those that layers read.

    A grid that mathematics gives, such as that of a sigmoid, is no matter of calibration.
    """
    owners = {}
    for node in gm.graph.nodes:
        module = _module(gm, node)
        if _is_fixed(gm, node):
            continue
        if isinstance(module, QuantizationMixin):
            first = next(module.output_quantizers.active(), (1, None))
            if first[0] == 0:
                owners[node] = first[1]
    if any(isinstance(m, QuantizationMixin) for m in gm.modules()):
        yield from owners.items()
        return
    for node in gm.graph.nodes:
        row = ops.row_of(node, gm)
        if row is None or row.weight_axis is None:
            continue
        for _, operand in operands(node, gm):
            made = origin(operand, gm)[0]
            if not _is_fixed(gm, made):
                yield made, None


def _is_fixed(gm: fx.GraphModule, node: fx.Node) -> bool:
    row = ops.row_of(node, gm)
    return row is not None and row.grid_for(ops.arguments(node, gm)) is ops.Grid.FIXED
