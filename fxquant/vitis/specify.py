"""A strategy carried out: quantizers of a placed graph get the properties that its rules name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxquant import ops
from fxquant.errors import ConfigError, place
from fxquant.nn import QuantizationMixin
from fxquant.placement.dataflow import operands
from fxquant.quantization import QuantizerBase
from fxquant.quantization.affine import (
    AffineQuantizer,
    BiasQuantizeDequantize,
    QuantizeDequantize,
)
from fxquant.quantization.affine.pof2 import PowerOfTwo, PowerOfTwoQuantizeDequantize
from fxquant.quantization.affine.pof2_rounding import OF_ONNX, RoundingQuantizeDequantize
from fxquant.quantization.analyzers import EncodingAnalyzer, MinMax, Percentile, Sqnr
from fxquant.quantization.float import FloatQuantizeDequantize
from fxquant.vitis.relative_entropy import Entropy
from fxquant.vitis.strategy import KINDS, Kind, Strategy, TensorRule

if TYPE_CHECKING:
    from fxquant.targets import Target

_NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
Layer = tuple[str, str, str]


def specify(gm: fx.GraphModule, strategy: Strategy, target: Target) -> dict[nn.Module, str]:
    """Replace the quantizers that the strategy speaks of.

    Args:
        gm: placed graph, not calibrated; it is changed.
        strategy: the rules.
        target: what is possible.

    Returns:
        Quantizer of an activation -> statistic over batches, where the strategy names one.

    Raises:
        ConfigError: FXQ272 contradicting rules, FXQ273 a rule that matches nothing, FXQ274 a
            property that the target does not offer, FXQ285 a rule that changes nothing.
    """
    work = _Work(gm, strategy, target)
    strategy.check_names([work.layer(n) for n in work.called])
    work.activations()
    work.parameters()
    work.check_used()
    return work.statistics


@dataclass
class _Work:
    gm: fx.GraphModule
    strategy: Strategy
    target: Target
    new: dict[int, QuantizerBase | None] = field(default_factory=dict)
    rules: dict[int, tuple[TensorRule | None, Layer]] = field(default_factory=dict)
    statistics: dict[nn.Module, str] = field(default_factory=dict)
    seen: set[tuple[Kind, Layer]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.called = [n for n in self.gm.graph.nodes if n.op == "call_module"]
        self.modules = {n: self.gm.get_submodule(str(n.target)) for n in self.called}

    def layer(self, node: fx.Node) -> Layer:
        """(path, operator, class) of a node."""
        row, module = ops.row_of(node, self.gm), self.modules[node]
        cls = type(module).float_class if isinstance(module, QuantizationMixin) else type(module)
        return str(node.target), row.name if row else "", cls.__name__

    # activations -----------------------------------------------------------------------------

    def activations(self) -> None:
        """New quantizers of outputs; one that several modules hold stays one."""
        for node in self.called:
            module = self.modules[node]
            if not isinstance(module, QuantizationMixin):
                continue
            for i, old in module.output_quantizers.active():
                module.output_quantizers[i] = self._activation(node, old)

    def _activation(self, node: fx.Node, old: QuantizerBase) -> QuantizerBase | None:
        layers = [self.layer(n) for n in self._group(node)]
        kind: Kind = "input" if layers[-1][2] == "QuantStub" else "activation"
        self.seen |= {(kind, layer) for layer in layers}
        rule = self._rule_of_group(kind, layers, node)
        key = id(old)
        if key in self.rules and self.rules[key][0] != rule:
            other = self.rules[key][1][0]
            what = f"{other} and {layers[-1][0]} share one grid, but the rules differ"
            raise ConfigError("FXQ272", what, at=place(node), fix="give both the same rule")
        if key not in self.new:
            self.rules[key] = (rule, layers[-1])
            self.new[key] = None if rule is None else self._derived(old, rule, kind, node)
            made = self.new[key]
            if made is not None and rule is not None and rule.calib_statistic_method is not None:
                self.statistics[made] = rule.calib_statistic_method
        return self.new[key]

    def _group(self, node: fx.Node) -> list[fx.Node]:
        """The nodes of one kernel that writes a grid, the last one last."""
        group = [node]
        while True:
            row = ops.row_of(group[0], self.gm)
            found = [n for _, n in operands(group[0], self.gm)] if row else []
            if len(found) != 1 or found[0] not in self.modules or len(found[0].users) != 1:
                return group
            producer = self.modules[found[0]]
            if not isinstance(producer, QuantizationMixin) or not _takes_in(producer):
                return group
            group.insert(0, found[0])

    def _rule_of_group(self, kind: Kind, layers: list[Layer], node: fx.Node) -> TensorRule | None:
        rules = [self.strategy.rule(kind, [layer]) for layer in layers]
        plain = self.strategy.rule(kind, [])
        special = [r for r in rules if r != plain]
        if any(r != special[0] for r in special):
            names = ", ".join(layer[0] for layer in layers)
            what = f"{names} are computed as one, but their activations have different rules"
            raise ConfigError("FXQ272", what, at=place(node), fix="give the group one rule")
        return special[0] if special else plain

    # parameters ------------------------------------------------------------------------------

    def parameters(self) -> None:
        """New quantizers of weights and biases; those of biases follow what they are built on."""
        for node in self.called:
            module = self.modules[node]
            if isinstance(module, QuantizationMixin):
                old = dict(module.param_quantizers.active())
                if "weight" in old:
                    module.param_quantizers["weight"] = self._weight(node, old["weight"])
                if "bias" in old:
                    module.param_quantizers["bias"] = self._bias(node, module, old["bias"])

    def _weight(self, node: fx.Node, old: QuantizerBase) -> QuantizerBase | None:
        self.seen.add(("weights", self.layer(node)))
        if id(old) not in self.new:
            rule = self.strategy.rule("weights", [self.layer(node)])
            made = None if rule is None else self._derived(old, rule, "weights", node)
            self.new[id(old)] = made
        return self.new[id(old)]

    def _bias(
        self, node: fx.Node, module: QuantizationMixin, old: QuantizerBase
    ) -> QuantizerBase | None:
        layers = [self.layer(node)]
        self.seen.add(("bias", layers[0]))
        rule = self.strategy.rule("bias", layers)
        if rule is None:
            return None
        if not isinstance(old, BiasQuantizeDequantize):
            return self._derived(old, rule, "bias", node)
        if self.strategy.speaks_of("bias", layers):
            own = QuantizeDequantize(shape=(), bitwidth=8, symmetric=True, signed=True)
            own.where = old.where
            return self._derived(own, rule, "bias", node)
        source = self.new.get(id(old.input_quantizer), old.input_quantizer)
        weight = dict(module.param_quantizers.active()).get("weight")
        if not isinstance(source, AffineQuantizer) or not isinstance(weight, AffineQuantizer):
            return None  # without integers on both sides there is no accumulator to follow
        bias = BiasQuantizeDequantize(source, weight)
        bias.where = old.where
        return bias

    def check_used(self) -> None:
        """Refuse rules of layers for tensors that have no grid there.

        Raises:
            ConfigError: FXQ285, the rule and the kind of tensor are named.
        """
        for i, rule in enumerate(self.strategy.layer_quantize_config):
            there = {kind for kind, layer in self.seen if rule.matches(*layer)}
            where = f"layer_quantize_config.{i}"
            named = [k for k in KINDS if getattr(rule.tensor_quantize_config, k) is not None]
            for kind in (k for k in named if k not in there):
                what = f"{where}.tensor_quantize_config.{kind} changes nothing: "
                what += f"no {kind} of {rule.layer_name or rule.layer_type} has a grid"
                fix = "take it out, or write it for the layer that makes the values"
                raise ConfigError("FXQ285", what, fix=fix)
            if rule.overall_quantize_config.said and not there:
                what = f"{where}.overall_quantize_config changes nothing: no tensor has a grid"
                raise ConfigError("FXQ285", what, fix="take it out")

    # one quantizer ---------------------------------------------------------------------------

    def _derived(
        self, old: QuantizerBase, rule: TensorRule, kind: Kind, node: fx.Node
    ) -> QuantizerBase:
        if rule.datatype in _NARROW:
            narrow = FloatQuantizeDequantize(dtype=_NARROW[rule.datatype])
            narrow.where = old.where
            return narrow
        if not isinstance(old, AffineQuantizer) or not rule.said:
            return old
        made = self._affine(old, rule, kind, node)
        made.where = old.where
        if not old.overwritable:
            made.set_range(old.min, old.max)
            made.allow_overwrite(False)
            made.requires_grad_(False)
        return made

    def _affine(
        self, old: AffineQuantizer, rule: TensorRule, kind: Kind, node: fx.Node
    ) -> AffineQuantizer:
        powers = rule.scale_type == "poweroftwo" if rule.scale_type else _is_power(old)
        bits = rule.bit_width or old.bitwidth
        symmetric = powers or (old.symmetric if rule.symmetry is None else rule.symmetry)
        signed = powers or (old.signed if rule.signed is None else rule.signed)
        if rule.symmetry and rule.signed is None:
            signed = True
        self._check_offer(kind, bits, symmetric, powers, node)
        low = -(2 ** (bits - 1)) if signed else 0
        options: dict[str, Any] = {
            "shape": self._shape(old, rule, kind, node),
            "symmetric": symmetric,
            "qmin": low + bool(rule.narrow_range),
            "qmax": low + 2**bits - 1,
            "rounding": rule.round_mode or getattr(old, "rounding", OF_ONNX),
            "encoding_analyzer": _analyzer(old, rule, powers, bits, self.target),
        }
        if powers:
            return PowerOfTwoQuantizeDequantize(**options)
        return RoundingQuantizeDequantize(**options)

    def _shape(
        self, old: AffineQuantizer, rule: TensorRule, kind: Kind, node: fx.Node
    ) -> tuple[int, ...]:
        if kind != "weights" or rule.per_channel is None:
            return old.shape
        module = self.modules[node]
        axes, weight = ops.weight_axes(module), getattr(module, "weight", None)
        if not rule.per_channel or weight is None:
            return ()
        return tuple(n if i in axes else 1 for i, n in enumerate(weight.shape))

    def _check_offer(
        self, kind: Kind, bits: int, symmetric: bool, powers: bool, node: fx.Node
    ) -> None:
        """Refuse what the target does not offer."""
        if kind == "bias":
            return
        grid = self.target.weight if kind == "weights" else self.target.activation
        wanted = "symmetric" if symmetric else "asymmetric"
        wrong = {
            f"bit_width={bits}": bool(grid.bitwidths) and bits not in grid.bitwidths,
            f"symmetry={symmetric}": wanted not in grid.symmetries,
            "scale_type=float": self.target.powers_of_two and not powers,
        }
        for text in (k for k, bad in wrong.items() if bad):
            what = f"{text} of {kind} is not possible on {self.target.name}"
            raise ConfigError(
                "FXQ274", what, at=place(node), fix="take another target, or change the strategy"
            )


def _takes_in(producer: QuantizationMixin) -> bool:
    """Whether a module's kernel writes the grid of what follows it."""
    weighted = "weight" in dict(producer.param_quantizers.active())
    return weighted and not any(True for _ in producer.output_quantizers.active())


def _is_power(quantizer: AffineQuantizer) -> bool:
    return isinstance(quantizer, PowerOfTwoQuantizeDequantize)


def _analyzer(
    old: AffineQuantizer, rule: TensorRule, powers: bool, bits: int, target: Target
) -> EncodingAnalyzer:
    search = target.search
    cap = search.narrow_cap if bits <= 8 else search.wide_cap
    given = old.encoding_analyzer
    if powers:
        scopes = {"maxmin": 1, "diffs": search.scope}
        known = given.scope if isinstance(given, PowerOfTwo) else search.scope
        return PowerOfTwo(scopes.get(rule.method or "", known), cap)
    chosen: dict[str | None, EncodingAnalyzer] = {
        "maxmin": MinMax(),
        "percentile": Percentile(rule.percentage or 99.99),
        "mse": Sqnr(gamma=1.0),
        "entropy": Entropy(),
    }
    fallback = Sqnr() if isinstance(given, PowerOfTwo) else given
    return chosen.get(rule.method, fallback)
