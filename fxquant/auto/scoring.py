"""How good a simulation is: by the user's own measure, and by its distance from the float model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from fxquant.auto.calibration_data import Batches, call
from fxquant.calibrate import using_threads
from fxquant.errors import ConfigError
from fxquant.graph.pytree import leaves
from fxquant.mixed_precision.scores import score_of
from fxquant.nn.modes import evaluating
from fxquant.quantization.decibels import Power, decibels

if TYPE_CHECKING:
    from torch import fx

    from fxquant.sim import QuantizationSimModel

Evaluate = Callable[[Any], Any]
On = Literal["sim", "integer", "onnxruntime"]
ON: tuple[On, ...] = ("sim", "integer", "onnxruntime")


@dataclass(frozen=True, order=True)
class Score:
    """Compared by the first, then by the second.

    Attributes:
        value: what `evaluate` returned; without one the decibels.
        decibels: signal to quantization noise of the outputs, of the worst of them.
    """

    value: float
    decibels: float


class Scorer:
    """Scores float models, simulations and files alike.

    Args:
        evaluate: `evaluate(model)` returns a number, the higher the better; None: decibels.
        on: what `evaluate` is given: the simulation, the exact integer executor, or a session of
            onnxruntime.
        reference: the float model.
        held: batches that decibels are measured on.
        lowering: options of the export: `opset`, `contrib` and `deploy`.
    """

    def __init__(
        self, evaluate: Evaluate | None, on: On, reference: fx.GraphModule, held: Batches,
        lowering: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.evaluate, self.on, self.reference, self.held = evaluate, on, reference, held
        self.lowering = lowering or {}

    def forward_seconds(self) -> float:
        """CPU seconds of the float model for one batch."""
        with evaluating(self.reference), torch.no_grad(), using_threads(1):
            batch = self.held.first()
            call(self.reference, batch)
            begin = time.process_time()
            call(self.reference, batch)
            return time.process_time() - begin

    def of_float(self) -> float:
        """The score of the float model: infinitely many decibels without `evaluate`."""
        return math.inf if self.evaluate is None else self.measured(self.reference, "float model")

    def of(self, sim: QuantizationSimModel, name: str) -> Score:
        """The score of a simulation.

        Args:
            sim: the simulation.
            name: how errors call it.
        """
        found = output_decibels(self.reference, sim.model, self.held)
        if self.evaluate is None and found is None:
            what = "the model returns no floating-point tensor whose error could be measured"
            raise ConfigError("FXQ256", what, fix="pass evaluate")
        level = 0.0 if found is None else found
        if self.evaluate is None:
            return Score(level, level)
        model = sim.model if self.on == "sim" else self._lowered(sim, self.on)
        return Score(self.measured(model, name), level)

    def of_model(self, model: nn.Module) -> float:
        """What `evaluate` returns for a simulated model inside of a technique."""
        return self.measured(model, "a technique")

    def measured(self, model: nn.Module, name: str) -> float:
        """What `evaluate` returns for a model, checked.

        Raises:
            ConfigError: FXQ258 it raised, FXQ249 it returned no finite number.
        """
        return math.nan if self.evaluate is None else score_of(self.evaluate, model, name)

    def of_runtime(self, sim: QuantizationSimModel, known: float) -> float | None:
        """The score of a simulation in onnxruntime; None without `evaluate`.

        Args:
            sim: the simulation.
            known: its score on what `evaluate` is given.
        """
        if self.evaluate is None or self.on == "onnxruntime":
            return None if self.evaluate is None else known
        return self.measured(self._lowered(sim, "onnxruntime"), "onnxruntime")

    def _lowered(self, sim: QuantizationSimModel, on: On) -> nn.Module:
        from fxquant.onnx.integer import IntegerSimulation
        from fxquant.onnx.runtime_simulation import RuntimeSimulation

        given = {k: v for k, v in self.lowering.items() if v is not None}
        usual = {"contrib": sim.target.contrib, "deploy": sim.config.deploy or sim.target.deploy}
        kind = IntegerSimulation if on == "integer" else RuntimeSimulation
        return kind(sim.model, sim.example, **usual | given)


def output_decibels(real: nn.Module, other: nn.Module, batches: Batches) -> float | None:
    """Signal to noise in dB of the worst output of a model; None without floating-point outputs."""
    sums: dict[str, Power] = {}
    with evaluating(real), evaluating(other), torch.no_grad(), using_threads(1):
        for batch in batches:
            want, found = (_floats(call(model, batch)) for model in (real, other))
            for path, x in want.items():
                _add(sums.setdefault(path, Power()), x, found.get(path))
    return min((decibels(p.signal, p.noise) for p in sums.values()), default=None)


def _floats(result: Any) -> dict[str, Tensor]:
    return {
        path: leaf.detach().as_subclass(Tensor).double()
        for path, leaf in leaves(result)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    }


def _add(power: Power, real: Tensor, found: Tensor | None) -> None:
    """Equal infinities, as in masks, are no noise; what cannot be compared is noise without end."""
    if found is None or found.shape != real.shape or not _same_infinities(real, found):
        power.noise = math.inf
    else:
        power.add(real, found)


def _same_infinities(real: Tensor, found: Tensor) -> bool:
    return bool((real.isfinite() | (real == found)).all())
