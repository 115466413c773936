"""Placement: modules become quantized modules and every planned grid gets its quantizer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxquant import ops
from fxquant.config import QuantConfig
from fxquant.errors import place
from fxquant.graph.meta import computes_floats
from fxquant.graph.pass_infra import Fact, Pass, set_state
from fxquant.graph.rewriter import label
from fxquant.nn import QuantizationMixin, QuantStub
from fxquant.nn.mixin import is_ignored
from fxquant.placement.dataflow import Slot, is_sequence, slot_spec
from fxquant.placement.plan import Plan, PlannedQuantizer, WeightPlan
from fxquant.placement.planner import make_plan
from fxquant.quantization import QuantizerBase, QuantScheme, affine
from fxquant.targets import Target
from fxquant.targets.quantizer_choice import quantizer_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class PlaceQuantizers(Pass):
    """Give every value that is read in integers one quantizer, in the module that makes it.

    Before: `x -> conv2d -> relu -> linear`.
    After: `x -> QuantStub -> QuantizedConv2d -> QuantizedReLU -> QuantizedLinear`, with quantizers
    on the stub's output, the relu's output and the weights.

    Attributes:
        config: what to quantize and how.
        target: what the runtime computes in integers.
        scheme: how ranges are found.
    """

    needs = frozenset({Fact.MODULES_ONLY, Fact.UNIQUE_MODULES})
    gives = frozenset({Fact.PLACED})

    config: QuantConfig = field(default_factory=QuantConfig)
    target: Target = field(default_factory=lambda: Target(name="none"))
    scheme: QuantScheme = QuantScheme.post_training_tf_enhanced

    def run(self, rw: Rewriter) -> None:
        """Plan, then carry out the plan."""
        plan = make_plan(rw.gm, self.config, self.target)
        on_integers = dict(_on_integers(rw, plan))
        self._swap_modules(rw)
        owners = self._place_grids(rw, plan)
        self._place_weights(rw, plan, owners)
        for node, reasons in plan.why.items():
            rw.explain(node, *reasons)
        set_state(rw.gm, on_integers=on_integers)
        for node in rw.nodes:
            module = rw.module(node)
            if isinstance(module, QuantizationMixin):
                given: list[fx.Node] = []
                fx.node.map_arg((node.args, node.kwargs), given.append)
                module.input_quantizers.limit = sum(_tensors(n.meta.get("spec")) for n in given)
                module.output_quantizers.limit = _tensors(node.meta.get("spec"))

    def _swap_modules(self, rw: Rewriter) -> None:
        for node in rw.nodes:
            module = rw.module(node)
            if module is not None and _is_quantizable(module):
                rw.set_module(str(node.target), QuantizationMixin.from_module(module))

    def _place_grids(self, rw: Rewriter, plan: Plan) -> dict[Slot, QuantizerBase]:
        owners: dict[Slot, QuantizerBase] = {}
        for grid in plan.grids:
            quantizer = self._activation_quantizer(grid)
            for slot in grid.slots:
                owner, index = self._owner(rw, slot, plan)
                rw.set_quantizer(owner.output_quantizers, index, quantizer)
                owners[slot] = quantizer
            quantizer.where = f"the output of {place(grid.slots[0][0])}"
        return owners

    def _owner(self, rw: Rewriter, slot: Slot, plan: Plan) -> tuple[QuantizationMixin, int]:
        """The module that makes a value; a stub where no module does, or at a region's boundary."""
        node, index = slot
        if slot in plan.boundaries:
            inside = plan.inside or frozenset()
            return self._stub(rw, slot, [u for u in node.users if u in inside]), 0
        if slot in plan.integer_consumers:
            return self._stub(rw, slot, plan.integer_consumers[slot]), 0
        module = rw.module(node)
        if isinstance(module, QuantizationMixin):
            return module, index
        if module is not None and not is_ignored(module):
            quantized = QuantizationMixin.from_module(module)
            rw.set_module(str(node.target), quantized)
            return quantized, index
        return self._stub(rw, slot, [u for u in node.users if u.op != "output"]), 0

    def _stub(self, rw: Rewriter, slot: Slot, consumers: list[fx.Node]) -> QuantizationMixin:
        """A QuantStub behind a value that no quantized module makes."""
        node = slot[0]
        begin = QuantStub()
        begin.placed = True
        stub = QuantizationMixin.from_module(begin)
        with rw.after(node):
            name = f"{node.name}_stub"
            made = rw.new_module(stub, node, like=node, name=name, spec=slot_spec(slot))
        rw.redirect(node, made, consumers)
        return stub

    def _activation_quantizer(self, grid: PlannedQuantizer) -> affine.QuantizeDequantize:
        quantizer = quantizer_for(
            self.target, "entry" if grid.entry else "activation", self.scheme,
            bitwidth=grid.bitwidth, symmetric=grid.symmetric, signed=grid.signed,
            by_token=grid.by_token,
        )  # fmt: skip
        for end, value in zip(("min", "max"), grid.fixed or (None, None), strict=True):
            if value is not None:
                quantizer.set_range(**{end: value})
                quantizer.allow_overwrite(**{end: False})
                getattr(quantizer, end).requires_grad_(False)
        return quantizer

    def _place_weights(self, rw: Rewriter, plan: Plan, owners: dict[Slot, QuantizerBase]) -> None:
        shared: dict[tuple[int, WeightPlan | None], QuantizerBase] = {}
        for node, wanted in plan.weights.items():
            module = rw.module(node, QuantizationMixin)
            if module is None:
                continue
            key = (id(module.weight), _without_bias(wanted))
            weight = shared.setdefault(key, self._weight_quantizer(wanted))
            weight.where = weight.where or f"the weight of {place(node)}"
            rw.set_quantizer(module.param_quantizers, "weight", weight)
            if wanted.own_bias:
                rw.set_quantizer(module.param_quantizers, "bias", self._own_bias_quantizer(node))
            source = owners.get(wanted.bias_input) if wanted.bias_input else None
            if source is not None:
                bias = affine.BiasQuantizeDequantize(source, weight)
                bias.where = f"the bias of {place(node)}"
                rw.set_quantizer(module.param_quantizers, "bias", bias)

    def _weight_quantizer(self, wanted: WeightPlan) -> affine.QuantizeDequantize:
        return quantizer_for(
            self.target, "weight", self.scheme, shape=wanted.shape, bitwidth=wanted.bitwidth,
            symmetric=wanted.symmetric, signed=wanted.signed, block_size=wanted.blocks,
        )  # fmt: skip

    def _own_bias_quantizer(self, node: fx.Node) -> affine.QuantizeDequantize:
        bias = quantizer_for(
            self.target, "bias", self.scheme, bitwidth=self.target.bias.bitwidth, symmetric=True,
            signed=True,
        )  # fmt: skip
        bias.where = f"the bias of {place(node)}"
        return bias


def _tensors(spec: Any) -> int:
    """How many tensors a recorded value holds; a value that was not recorded may be one."""
    if isinstance(spec, dict):
        return sum(map(_tensors, spec.values()))
    return (
        sum(map(_tensors, spec))
        if is_sequence(spec)
        else int(spec is None or hasattr(spec, "dtype"))
    )


def _without_bias(plan: WeightPlan) -> WeightPlan:
    return replace(plan, bias_input=None, own_bias=False)


def _is_quantizable(module: nn.Module) -> bool:
    row = ops.row_for_module(module)
    if is_ignored(module):
        return False
    return row is not None and row.grid is not ops.Grid.INDEX


def _on_integers(rw: Rewriter, plan: Plan) -> Iterator[tuple[str, bool]]:
    """Whether the target computes an operator on integers, of all that do not just move values."""
    for node in rw.nodes:
        row, module = rw.op(node), rw.module(node)
        if not computes_floats(node) or (module is not None and is_ignored(module)):
            continue
        if row is not None and row.grid_for(ops.arguments(node, rw.gm)) is ops.Grid.SAME:
            continue
        rule = plan.kernels.get(node)
        yield label(node), node in plan.absorbed or (rule is not None and rule.kernel == "integer")
