"""Fast fine-tuning: weights, steps and biases refined layer by layer, from the engine's result."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.errors import ConfigError
from fxquant.graph.pytree import tensors
from fxquant.ptq.engine import ReconstructionOptions, reconstruct
from fxquant.ptq.layer_problem import LayerProblem
from fxquant.ptq.layer_walk import DataOptions, LayerWise, require_number
from fxquant.ptq.layers.tied_layers import TiedLayer
from fxquant.ptq.sampling import Sampling, hash_of, layer_data
from fxquant.ptq.snapshot import restore, snapshot, undone_on_error
from fxquant.ptq.solving.refinement import Refined, RefinementOptions, refine
from fxquant.ptq.solving.solver import SolverOptions
from fxquant.ptq.techniques.following_activation import activation_after
from fxquant.ptq.techniques.layerwise import batches, rows_of
from fxquant.ptq.techniques.output_error import OutputErrors, output_errors
from fxquant.ptq.walking.given_simulation import require_simulation
from fxquant.ptq.walking.stored_batches import StoredBatches
from fxquant.ptq.walking.walk_cost import Cost, layer_lines
from fxquant.quantization.affine import GroupedBlockQuantizeDequantize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.graph.selectors import Selector
    from fxquant.ptq.layer_walk import Visit
    from fxquant.ptq.techniques.layerwise import ForwardFn
    from fxquant.ptq.walking.walk import Progress
    from fxquant.sim import QuantizationSimModel


@dataclass(frozen=True)
class FinetuneParams:
    """Options of `fast_finetune`.

    Attributes:
        num_batches: batches of the data that are used; None: all, up to `data.samples`.
        refinement: how a layer is refined.
        data: how much of the data is looked at; one batch in `held_out` is for the whole network's
            comparison only.
        forward_fn: `forward_fn(model, batch)` calls the model on a batch.
    """

    num_batches: int | None = None
    refinement: RefinementOptions = field(default_factory=RefinementOptions)
    data: DataOptions = field(default_factory=DataOptions)
    forward_fn: ForwardFn | None = None

    def __post_init__(self) -> None:
        require_number("num_batches", self.num_batches, 1, none=True)
        given = self.refinement
        require_number("iterations", given.iterations, 1)
        require_number("batch", given.batch, 1)
        rates: dict[str, Any] = {
            name: getattr(given, name) for name in ("rate", "scale_rate", "bias_rate")
        }
        for name, value in rates.items():
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                what = f"the option {name} of fine-tuning is {value!r}"
                raise ConfigError("FXQ208", what, fix="pass a number that is not negative")


@dataclass(frozen=True)
class FinetuneLayer:
    """One layer. Errors are mean squared ones behind the activation, on samples held out.

    Attributes:
        path: its path.
        activation: path of the activation that was looked behind; "" for none.
        error_before: with what the engine chose.
        error_after: with what was learned; not above `error_before`.
        changed: "weight, scale and bias" or those of them that are learned, or "nothing".
        seconds: CPU seconds.
    """

    path: str
    activation: str
    error_before: float
    error_after: float
    changed: str
    seconds: float


@dataclass
class FinetuneReport:
    """What `fast_finetune` did.

    Attributes:
        layers: in the order of the graph.
        skipped: why other quantized weights are as they were, by path.
        kept: "finetuned", "engine" or "nothing": what the network's outputs on batches held out are
            best with, none of them worse than before.
        before: errors of the outputs on these batches as the simulation was given.
        engine: the same with what the engine chose.
        finetuned: the same with what was learned, whether it is kept or not.
        held_batches: number of these batches; 0: the data are one batch, which had to judge itself.
        cost: what the refinement cost, the engine included.
    """

    kept: str
    before: OutputErrors
    engine: OutputErrors
    finetuned: OutputErrors
    held_batches: int
    layers: list[FinetuneLayer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    def __str__(self) -> str:
        heads = ("layer", "error", "of engine's", "s", "changed")
        rows = [
            (r.path, f"{r.error_after:.3g}",
             f"{r.error_after / r.error_before:.2f}" if r.error_before else "-",
             f"{r.seconds:.2f}", r.changed)
            for r in self.layers
        ]  # fmt: skip
        lines = layer_lines(heads, rows, self.skipped)
        where = f"{self.held_batches} batch(es) held out" if self.held_batches else "the same batch"
        lines.append(
            f"outputs on {where}: error {self.before.total:.3g} before, {self.engine.total:.3g} by "
            f"the engine, {self.finetuned.total:.3g} fine-tuned; kept: {self.kept}"
        )
        return "\n".join([*lines, str(self.cost)])


def fast_finetune(
    sim: QuantizationSimModel,
    data: Any,
    params: FinetuneParams | None = None,
    *,
    modules_to_exclude: Iterable[Selector] | Selector | None = None,
    progress: Progress | None = None,
) -> FinetuneReport:
    """Fine-tune a calibrated simulation layer by layer, in place; it is never worse afterwards.

    It starts from what `reconstruct` finds. Then weights, steps and biases of each layer are
    refined together by gradient descent: inputs are those of the simulation so far, outputs those
    of the float model, behind the activation that follows. A layer keeps what it has learned if
    samples held out are better off. In the end the network's outputs on batches held out are
    compared, and what is worse there is undone.

    Args:
        sim: a calibrated simulation.
        data: an iterable of batches, as for `compute_encodings`.
        params: see `FinetuneParams`.
        modules_to_exclude: modules of `sim.model`, classes, paths, globs or predicates that are not
            refined; the engine works on them.
        progress: called after each node of the refinement with (nodes done, nodes in all).

    Returns:
        What was done, layer by layer, and what it did to the network.

    Raises:
        ConfigError: FXQ208, FXQ296 and FXQ297, an argument is wrong.
        SelectorError: FXQ213 or FXQ241, there is nothing to exclude.
        CalibrationError: FXQ441 to FXQ447, as for `reconstruct`; FXQ455, too few batches.
        UncalibratedError: FXQ401, the simulation is not calibrated.

    Source: Hubara et al. 2020, arXiv:2006.10518 ("AdaQuant"), equation 2; the comparison of the
    whole network is that of the quantizer of Vitis AI.

    Example:
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(64, 8)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), x, default_param_bw=3)
        >>> sim.compute_encodings([x])
        >>> report = fast_finetune(sim, [x])
        >>> states = {"finetuned": report.finetuned, "engine": report.engine}
        >>> states.get(report.kept, report.before).total <= report.before.total
        True
    """
    require_simulation(sim, "fast_finetune")
    given, begin = params or FinetuneParams(), time.process_time()
    if modules_to_exclude:
        modules_to_exclude = list(LayerWise.of(sim.model, None, modules_to_exclude).skipped)
    seen = batches(sim.model, data, given.num_batches, given.forward_fn)
    samples = None if given.num_batches else given.data.samples
    with ExitStack() as stack, undone_on_error(sim) as start:
        fitted, held = _parted(seen, samples, given.data, stack)
        judged = held or fitted
        before = output_errors(sim.model, judged, given.data)
        free = {n.path for n in LayerWise.of(sim.model, None).layers if not n.frozen}
        engine = reconstruct(sim, fitted, _engine_options(given.data))
        by_engine, middle = output_errors(sim.model, judged, given.data), snapshot(sim)
        walk = LayerWise.of(sim.model, replace(given.data, samples=None), modules_to_exclude)
        layers = walk.run(fitted, lambda v: _refined(v, free, given), progress)
        after = output_errors(sim.model, judged, given.data)
        kept = _best({"nothing": before, "engine": by_engine, "finetuned": after}, before)
        if kept != "finetuned":
            restore(sim, middle if kept == "engine" else start)
    walk.cost.seconds = time.process_time() - begin
    walk.cost.float_seconds = engine.float_seconds
    return FinetuneReport(
        kept, before, by_engine, after, len(held) if held else 0, layers, walk.skipped, walk.cost
    )


def _best(states: Mapping[str, OutputErrors], before: OutputErrors) -> str:
    """The state with the smallest error among those in which no output is worse than before."""
    allowed = {name: errors for name, errors in states.items() if errors.is_no_worse(before)}
    return min(allowed, key=lambda name: allowed[name].total)


def _engine_options(data: DataOptions) -> ReconstructionOptions:
    return ReconstructionOptions(
        samples=10**9, columns=data.columns, held_out=data.held_out, max_memory=data.max_memory,
        folder=data.folder, seed=data.seed, threads=data.threads,
    )  # fmt: skip


def _enough(data: Iterable[Any], samples: int | None) -> Iterator[Any]:
    """The first batches, of so many samples."""
    count = 0
    for batch in data:
        yield batch
        count += next((len(t) for t in tensors(batch) if t.dim()), 1)
        if samples is not None and count >= samples:
            break


def _parted(
    data: Any, samples: int | None, options: DataOptions, stack: ExitStack
) -> tuple[Any, Sequence[Any]]:
    """Batches to learn from, and batches to judge by; the walk says what is wrong with others."""
    if isinstance(data, Tensor):
        return [data], []
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes, Mapping, nn.Module)):
        return data, []
    given = isinstance(data, list | tuple)
    chosen = _enough(data, samples)
    taken = stack.enter_context(
        StoredBatches(list(chosen) if given else chosen, options.max_memory, options.folder)
    )
    if len(taken) < 2:
        return taken, []
    apart = max(1, len(taken) // options.held_out)
    return taken[:-apart], taken[-apart:]


def _refined(visit: Visit, free: set[str], given: FinetuneParams) -> FinetuneLayer:
    begin, layer, options = time.process_time(), visit.layer, given.refinement
    sampling = Sampling(given.data.columns, given.data.held_out, given.data.seed)
    tied = isinstance(layer, TiedLayer)
    after = None if tied else activation_after(visit.walk.gm, layer.node)
    problem = _Problem(visit, sampling, after and after[1], learn_scale=layer.path in free)
    start = problem.start()
    seed = given.data.seed * 1_000_003 + hash_of(layer.path)
    if tied or not layer.has_bias:
        options = replace(options, bias_rate=0.0)
    found = refine(start, problem.target, problem.seen, problem.held, options, seed=seed)
    before = float(problem.held.loss(start.grid.weight(start.integers), start.bias).mean())
    loss = float(problem.held.loss(found.grid.weight(found.integers), found.bias).mean())
    changed = problem.changes(found) if loss < before else "nothing"
    if changed != "nothing":
        problem.write(found)
    return FinetuneLayer(
        layer.path, after[0] if after else "", before, min(loss, before), changed,
        time.process_time() - begin,
    )  # fmt: skip


class _Problem:
    """What is learned for one layer; its matrices hold live columns only."""

    def __init__(
        self, visit: Visit, sampling: Sampling, activation: Any, *, learn_scale: bool
    ) -> None:
        layer = self.layer = visit.layer
        data = layer_data(layer, visit.walk, visit.sim, visit.float, sampling, rows=True)
        grid, self.places = layer.grid()
        fixed = isinstance(layer.quantizer, GroupedBlockQuantizeDequantize)
        self.whole = replace(grid, frozen=fixed or not learn_scale)
        self.live, self.every = data.live, layer.weight()
        self.grid = self.whole.part(data.live).to(torch.float32)
        self.seen, self.held = rows_of(layer, data, activation)
        self.bias = self.held.bias
        self.target = LayerProblem(layer, data, SolverOptions()).target

    def start(self) -> Refined:
        """The layer as it is."""
        integers = self.grid.nearest(self.every[:, :, self.live].float())
        return Refined(integers, self.grid, self.bias, 0.0)

    def changes(self, found: Refined) -> str:
        """What of a layer a result changes."""
        start = self.start()
        parts = {
            "weight": not torch.equal(found.integers, start.integers),
            "scale": not torch.equal(found.grid.scale, start.grid.scale),
            "bias": not torch.equal(found.bias, start.bias),
        }
        names = [name for name, is_new in parts.items() if is_new]
        return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:]))) or "nothing"

    def write(self, found: Refined) -> None:
        """Give the layer what was learned."""
        scale = self.whole.scale if self.whole.frozen else found.grid.scale.double()
        solution = self.layer.solution(self.whole.with_scale(scale), self.live, found.integers)
        layer = replace(self.layer, frozen=self.whole.frozen)
        bias = self.layer.bias() if isinstance(layer, TiedLayer) else found.bias.double()
        layer.write(solution, self.places, lambda _: bias, lambda _: solution)
