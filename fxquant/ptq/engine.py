"""Reconstruction: integers, scales and biases of a simulation, chosen by what layers put out.

One walk over the graph with two environments: the float model and the simulation, whose layers are
changed one after the other. A layer sees inputs that are already quantized, and its target is what
the float model puts out there, so that every layer makes up for errors of those before it. What is
found for a layer is kept only if its error falls on data held out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxquant.errors import CalibrationError, ConfigError
from fxquant.nn.modes import evaluating
from fxquant.ptq.layers import Layer, layers_of
from fxquant.ptq.moments import Moments, merge
from fxquant.ptq.report import LayerReport, ReconstructionReport
from fxquant.ptq.solver import Solution, SolverOptions, damp, solve
from fxquant.ptq.walk import Environment, FloatEnvironment, Walk
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from pathlib import Path

    from fxquant.ptq.grids import WeightGrid
    from fxquant.ptq.walk import Progress
    from fxquant.sim import QuantizationSimModel


@dataclass(frozen=True)
class ReconstructionOptions:
    """How a simulation is reconstructed.

    Attributes:
        solver: how integers and scales are found.
        samples: samples of the data that are used.
        columns: positions of a layer's output that are looked at, over all samples.
        held_out: one of so many samples is held out to judge by.
        float_target: aim at the float model's output; False: at the float weights, with the
            quantized inputs.
        correct_bias: change biases too.
        max_memory: bytes of values that are held in memory; the rest lies in files.
        folder: where these files are.
        seed: of the choice of positions.
        threads: of torch; 1 gives the same result on every machine; None: as they are.
    """

    solver: SolverOptions = field(default_factory=SolverOptions)
    samples: int = 256
    columns: int = 8192
    held_out: int = 8
    float_target: bool = True
    correct_bias: bool = True
    max_memory: int | None = None
    folder: str | Path | None = None
    seed: int = 0
    threads: int | None = 1

    def __post_init__(self) -> None:
        numbers = {"samples": 1, "columns": 1, "held_out": 2}
        for name, least in numbers.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                what = f"{name} is {value!r}"
                raise ConfigError("FXQ251", what, fix=f"pass a number from {least} on")


def reconstruct(
    sim: QuantizationSimModel,
    data: Any,
    options: ReconstructionOptions | None = None,
    *,
    progress: Progress | None = None,
) -> ReconstructionReport:
    """Choose the integers, scales and biases of a calibrated simulation, in place.

    Weights then lie on their grids, whose ranges `compute_encodings` leaves alone from now on.
    Frozen ranges are kept: only integers are chosen there.

    Args:
        sim: the simulation; its weights are those of the float model.
        data: an iterable of batches, as for `compute_encodings`.
        options: see `ReconstructionOptions`.
        progress: called after each node with (nodes done, nodes in all).

    Returns:
        What was done, layer by layer.

    Raises:
        CalibrationError: FXQ441 the model does not take a batch, FXQ442 to FXQ445 the data are no
            batches or hold NaN, FXQ446 a layer's input or output is not finite.
        UncalibratedError: FXQ401, the simulation is not calibrated.

    Source: the target is that of `Moments.target`, the integers are those of GPTQ
    (arXiv:2210.17323), improved by coordinate descent, biases by empirical bias correction
    (arXiv:1906.04721).

    Example:
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(64, 8)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), x, default_param_bw=4)
        >>> sim.compute_encodings([x])
        >>> report = reconstruct(sim, [x])
        >>> report.layers[0].error_after < report.layers[0].error_before
        True
    """
    return _Reconstruction(sim.model, options or ReconstructionOptions()).run(data, progress)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Reconstruction:
    def __init__(self, gm: fx.GraphModule, options: ReconstructionOptions) -> None:
        self.gm, self.options = gm, options
        self.layers, skipped = layers_of(gm)
        self.report = ReconstructionReport(skipped=skipped)
        self.float = FloatEnvironment(gm, "float")
        self.sim = Environment(gm, "simulation")

    def run(self, data: Any, progress: Progress | None) -> ReconstructionReport:
        given, report = self.options, self.report
        begin = time.process_time()
        with _threads(given.threads), evaluating(self.gm), torch.no_grad():
            walk = Walk(
                self.gm, data, (self.float, self.sim), samples=given.samples,
                max_memory=given.max_memory, folder=given.folder, progress=progress,
            )  # fmt: skip
            for number, node in enumerate(walk.nodes()):
                start = time.process_time()
                walk.compute(node, self.float)
                report.float_seconds += time.process_time() - start
                layer = self.layers.get(node)
                if layer is not None:
                    report.layers.append(self._layer(layer, walk, number))
        report.samples = sum(walk.samples)
        report.seconds = time.process_time() - begin
        report.peak_bytes, report.written_bytes = walk.store.peak, walk.store.written
        return report

    def _layer(self, layer: Layer, walk: Walk, number: int) -> LayerReport:
        begin = time.process_time()
        seen, held = _moments(layer, walk, self.sim, self.float, self.options, number)
        grid, places = layer.grid()
        weight, bias, given = layer.weight(), layer.bias(), self.options
        moved = layer.has_bias and given.correct_bias
        second = seen.second(centred=moved)
        target = seen.target(weight, centred=moved) if given.float_target else weight
        found = solve(target, second, grid, given.solver)
        before = Solution(grid.nearest(weight), grid)

        def new_bias(matrix: Tensor) -> Tensor:
            return seen.bias(matrix) if moved else bias

        def again(other: WeightGrid) -> Solution:
            return solve(target, second, other, given.solver)

        errors = [
            float(held.error(before.weight, bias).sum()),
            float(held.error(found.weight, new_bias(found.weight)).sum()),
        ]
        accepted = errors[1] < errors[0]
        if accepted:
            layer.write(found, places, new_bias, again)
        losses = [float(s.loss(target, damp(second, 0.0)).sum()) for s in (before, found)]
        offsets = [
            float((held.bias(before.weight) - bias).abs().mean()),
            float((held.bias(found.weight) - new_bias(found.weight)).abs().mean()),
        ]
        return LayerReport(
            layer.path, accepted, *losses, *errors, *offsets, time.process_time() - begin
        )


def _moments(
    layer: Layer,
    walk: Walk,
    source: Environment,
    wanted: Environment,
    options: ReconstructionOptions,
    number: int,
) -> tuple[Moments, Moments]:
    """Moments of the samples to solve on, and of those to judge by."""
    found: list[Moments | None] = [None, None]
    total, before = sum(walk.samples), 0
    for batch, samples in enumerate(walk.samples):
        x = layer.input(*walk.operands(layer.node, source, batch))
        y = plain(walk.value(layer.node, wanted, batch))
        positions = layer.product.positions(y)
        most = -(-options.columns * samples // total)
        chosen = _chosen(positions, most, (options.seed, number, batch), x.device)
        # samples are held out, not positions: neighbours in an image are much alike
        sample = before + torch.div(chosen * samples, max(positions, 1), rounding_mode="floor")
        if total < options.held_out:
            sample = torch.arange(len(chosen), device=x.device)
        held = sample % options.held_out == options.held_out - 1
        for i, part in enumerate((chosen[~held], chosen[held])):
            columns = layer.product.inputs(x, y, part), layer.product.outputs(y, part)
            found[i] = merge(found[i], Moments.of(*columns))
        before += samples
    seen = merge(found[0], None) or found[1]
    held_out = found[1] or seen
    if seen is None or held_out is None:
        raise CalibrationError("FXQ447", "a layer has no output to look at", at=layer.node)
    if not bool(seen.yy.isfinite().all() and seen.xx.isfinite().all()):
        what = f"input or output of {layer.path} holds NaN or infinity"
        raise CalibrationError("FXQ446", what, at=layer.node, fix="clean the data")
    return seen, held_out


def _chosen(count: int, most: int, seeds: tuple[int, ...], device: torch.device) -> Tensor:
    """Up to `most` of `count` positions in order, the same for the same seeds."""
    if count <= most:
        return torch.arange(count, device=device)
    seed = 0
    for part in seeds:
        seed = (seed * 1_000_003 + part) % 2**63
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values.to(device)
