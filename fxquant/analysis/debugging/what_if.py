"""What if some modules stayed in floating point: what the outputs gain, and what it costs."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fxquant.editing import quantized_modules
from fxquant.graph.node_walk import output_of
from fxquant.graph.pytree import fresh_inputs, tensors
from fxquant.graph.selectors import several
from fxquant.inspection.node_errors import NodeError, measuring
from fxquant.mixed_precision.costs import Costs
from fxquant.nn.modes import quantizers_removed
from fxquant.precision.sites import find_sites
from fxquant.ptq.layer_walk import require_number
from fxquant.ptq.snapshot import restore, snapshot
from fxquant.ptq.walking.given_simulation import require_simulation
from fxquant.ptq.walking.walk import (
    Environment,
    FloatEnvironment,
    bound_batches,
    taking_batch,
)
from fxquant.quantization.decibels import Power

if TYPE_CHECKING:
    from collections.abc import Collection

    from fxquant.sim import QuantizationSimModel

_LISTED = 4


@dataclass(frozen=True)
class State:
    """A simulation as it is, or with some modules in floating point.

    Attributes:
        sqnr_db: signal to noise ratio of the outputs against the float model; None where they are
            equal.
        size: bytes of the weights.
        bit_operations: multiply-accumulates of the example inputs, times the bits of both operands.
        latency: seconds of one run of the file in onnxruntime; None where it was not measured.
    """

    sqnr_db: float | None
    size: float
    bit_operations: float
    latency: float | None = None


@dataclass(frozen=True)
class WhatIf:
    """What some modules in floating point would change; prints as a sentence.

    Attributes:
        modules: their paths.
        now: the simulation as it is.
        then: with these modules in floating point.
        samples: samples that the ratio was measured on.
    """

    modules: tuple[str, ...]
    now: State
    then: State
    samples: int

    @property
    def gain_db(self) -> float | None:
        """What the outputs gain; None where one of both has no error."""
        if self.now.sqnr_db is None or self.then.sqnr_db is None:
            return None
        return self.then.sqnr_db - self.now.sqnr_db

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json.dumps(asdict(self) | {"gain_db": self.gain_db}, indent=1)

    def __str__(self) -> str:
        shown = ", ".join(self.modules[:_LISTED])
        more = len(self.modules) - _LISTED
        gain = self.gain_db
        parts = [
            "outputs equal to the float model's" if gain is None else f"{_signed(gain, 1)} dB",
            _change(self.now.latency, self.then.latency, "time"),
            _change(self.now.bit_operations, self.then.bit_operations, "bit operations"),
            _change(self.now.size, self.then.size, "bytes of weights"),
        ]
        found = ", ".join(part for part in parts if part)
        return f"{shown}{f' and {more} more' if more > 0 else ''} in float: {found}"


def _change(now: float | None, then: float | None, what: str) -> str:
    return f"{_signed(100 * (then / now - 1), 0)}% {what}" if now and then else ""


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # minus zero becomes plus zero


def what_if(
    sim: QuantizationSimModel,
    data: Any,
    nodes: Any,
    *,
    samples: int | None = 32,
    latency: bool = False,
    rounds: int = 20,
    threads: int | None = None,
) -> WhatIf:
    """Compare a simulation with itself, were the quantizers of some modules taken out.

    Args:
        sim: a calibrated simulation; it is left as it is.
        data: an iterable of batches, as for `compute_encodings`.
        nodes: a module of `sim.model` or several, as in `exclude_layers_from_quantization`, or rows
            of `node_errors`. The grid of an activation belongs to the module that makes it, which
            may be the ReLU behind a convolution.
        samples: samples that are enough; None: all.
        latency: measure the time of both files in onnxruntime, too, on the example inputs.
        rounds: how often each file is measured.
        threads: of torch; None: as they are. Files are run on one.

    Returns:
        What it gains and costs.

    Raises:
        SelectorError: FXQ213 a selector matches nothing, FXQ241 nothing quantized.
        CalibrationError: FXQ441 the model does not take a batch, FXQ442 to FXQ445 the data are
            none.
        UncalibratedError: FXQ401, the simulation is not calibrated.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(64, 8)
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> sim = QuantizationSimModel(net, x, default_param_bw=4)
        >>> sim.compute_encodings([x])
        >>> what_if(sim, [x], ["0", "2"]).gain_db > 0
        True
    """
    require_simulation(sim, "what_if")
    require_number("samples", samples, 1, none=True)
    given: list[Any] = several(nodes)
    selectors = [n.module if isinstance(n, NodeError) else n for n in given]
    paths = tuple(quantized_modules(sim.model, selectors))
    with measuring(sim.model, threads):
        ratios, count = _ratios(sim, data, samples, paths)
        costs = _costs(sim, paths)
    times = _latencies(sim, paths, rounds) if latency else (None, None)
    now, then = (State(*one) for one in zip(ratios, *costs, times, strict=True))
    return WhatIf(paths, now, then, count)


def _ratios(
    sim: QuantizationSimModel, data: Any, samples: int | None, paths: Collection[str]
) -> tuple[tuple[float | None, float | None], int]:
    gm, count = sim.model, 0
    exact, simulated = FloatEnvironment(gm, "float"), Environment(gm, "simulation")
    changed = FloatEnvironment(gm, "what if", paths)
    now, then = Power(), Power()
    for number, (values, size) in enumerate(bound_batches(gm, data, samples)):
        count += size
        with taking_batch(gm, values, number):
            wanted, *found = (
                output_of(environment, fresh_inputs(values))
                for environment in (exact, simulated, changed)
            )
        for power, value in zip((now, then), found, strict=True):
            power.add_comparable(tensors(wanted), tensors(value))
    return (now.db, then.db), count


def _costs(
    sim: QuantizationSimModel, paths: Collection[str]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Sizes and bit operations, now and then."""
    from fxquant.onnx.runs.observed import bound_example  # it loads onnx_ir

    values, sites = bound_example(sim.model, sim.example), find_sites(sim.model)
    now = Costs(sim.model, sites, (), values)
    with _in_float(sim, paths):
        then = Costs(sim.model, sites, (), values)
    return (now.rest_size, then.rest_size), (now.rest_operations, then.rest_operations)


def _in_float(sim: QuantizationSimModel, paths: Collection[str]) -> Any:
    return quantizers_removed(sim.model, lambda path, *_: path not in paths)


def _latencies(
    sim: QuantizationSimModel, paths: Collection[str], rounds: int
) -> tuple[float, float]:
    # it needs onnxruntime, the rest does not
    from fxquant.mixed_precision.latency import Stopwatch

    before = snapshot(sim)  # an export lays int32 biases anew
    try:
        with ExitStack() as stack:
            states = {
                "now": lambda: None,
                "then": lambda: stack.enter_context(_in_float(sim, paths)),
            }
            found = Stopwatch(sim, rounds).interleaved(states)
    finally:
        restore(sim, before)
    return found["now"], found["then"]
