"""The grids that a simulation of a float graph will have: what its techniques are judged on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxquant import ops
from fxquant.config import QuantConfig
from fxquant.editing import refresh_biases
from fxquant.errors import ConfigError
from fxquant.nn import QuantizationMixin
from fxquant.passes import simulation_pipeline
from fxquant.placement.dataflow import resolve_grids
from fxquant.ptq.layers.columns import product_of
from fxquant.quantization import QuantScheme
from fxquant.quantization.affine import AffineQuantizer
from fxquant.quantization.tensor import plain
from fxquant.targets import load_target

if TYPE_CHECKING:
    from torch import Tensor

    from fxquant.sim import QuantizationSimModel
    from fxquant.targets import Target


@dataclass(frozen=True)
class GridRequest:
    """What a simulation is made with, as in `QuantizationSimModel`.

    Attributes:
        target: name of a target, or a target.
        config: a configuration, or what one is loaded from.
        scheme: how ranges are found.
        output_bw: bits of activations; None: the configuration's or target's.
        param_bw: bits of weights; None: the configuration's or target's.
        per_channel: one grid for each output channel of a weight; None: the configuration's or
            target's.
        like: a simulation whose grids are taken; all others are its own then.
    """

    target: Target | str = "onnxruntime_x86"
    config: Any = None
    scheme: QuantScheme | str = QuantScheme.post_training_tf_enhanced
    output_bw: int | None = None
    param_bw: int | None = None
    per_channel: bool | None = None
    like: QuantizationSimModel | None = None

    def of(self, gm: fx.GraphModule) -> PlannedGrids:
        """The grids of a float graph, which is not changed.

        Raises:
            ConfigError: FXQ217 there is a simulation and a configuration or bits beside it, or it
                has none of the layers; a configuration is wrong.
        """
        if self.like is None:
            return PlannedGrids.of(self.placed(gm))
        if any(v is not None for v in (self.config, *self.bits, self.per_channel)):
            what = "a simulation is given, and bits or a configuration beside it"
            raise ConfigError("FXQ217", what, fix="leave the others out: its grids are taken")
        found = PlannedGrids.of(self.like.model)
        own = dict(gm.named_modules())
        if not any(path in own for path in found.weights):
            what = "the simulation has none of the model's layers"
            raise ConfigError("FXQ217", what, fix="pass a simulation of the same model")
        return found

    @property
    def bits(self) -> tuple[int | None, int | None]:
        """Bits of activations and of weights."""
        return self.output_bw, self.param_bw

    @property
    def loaded(self) -> Target:
        """The target itself."""
        return self.like.target if self.like is not None else load_target(self.target)

    def placed(self, gm: fx.GraphModule) -> fx.GraphModule:
        """A simulation of a float graph, which is not changed, with ranges yet to be found."""
        if self.like is not None:
            return self._with_weights(gm)
        target, config = self.loaded, QuantConfig.load(self.config)
        if self.per_channel is not None:
            config = config.replace(per_channel=self.per_channel)
        config = config.with_bits(self.bits, target.bitwidths)
        placed = copy.deepcopy(gm)
        simulation_pipeline(config, target, QuantScheme(self.scheme))(placed)
        return placed

    @torch.no_grad()
    def _with_weights(self, gm: fx.GraphModule) -> fx.GraphModule:
        """A copy of the simulation with the graph's parameters."""
        placed = copy.deepcopy(self.like.model)  # type: ignore[union-attr]
        own = dict(gm.named_parameters(remove_duplicate=False))
        for name, parameter in placed.named_parameters(remove_duplicate=False):
            given = own.get(name)
            if given is not None and given.shape == parameter.shape:
                parameter.copy_(given)
        refresh_biases(placed)
        return placed


@dataclass(frozen=True)
class PlannedGrids:
    """Copies of quantizers, to be calibrated at will; what is not listed is floating point.

    Attributes:
        weights: of the layers' weights, by path of the layer.
        inputs: of what the layers read, by path of the layer.
    """

    weights: dict[str, AffineQuantizer]
    inputs: dict[str, AffineQuantizer]

    @classmethod
    def of(cls, placed: fx.GraphModule) -> PlannedGrids:
        """The grids of a simulated graph."""
        grids = resolve_grids(placed)
        weights: dict[str, AffineQuantizer] = {}
        inputs: dict[str, AffineQuantizer] = {}
        for node in placed.graph.nodes:
            module = placed.get_submodule(str(node.target)) if node.op == "call_module" else None
            if not isinstance(module, QuantizationMixin) or product_of(module) is None:
                continue
            operand = ops.arguments(node, placed)["input"]
            above = grids.get(operand) or (None,)
            own = module.input_quantizers._modules.get("0")
            _take(weights, str(node.target), module.param_quantizers._modules.get("weight"))
            _take(inputs, str(node.target), above[0] if own is None else own)
        return cls(weights, inputs)

    def weight(self, path: str, weight: Tensor) -> Tensor:
        """A weight of a layer on its grid, whose range is found for it; float32 on the CPU."""
        quantizer, given = self.weights.get(path), plain(weight.detach()).float().cpu()
        if quantizer is None:
            return given
        with torch.no_grad(), quantizer.compute_encodings():
            quantizer(given)
        return quantizer.transform(given)


def _take(into: dict[str, AffineQuantizer], path: str, found: nn.Module | None) -> None:
    if isinstance(found, AffineQuantizer):
        into[path] = copy.deepcopy(found).cpu()
