"""Sequential MSE: ranges of weights by the outputs of their layers, one layer after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from fxquant.errors import ConfigError, nearest
from fxquant.ptq.layer_walk import DataOptions, LayerWise, require_number
from fxquant.ptq.sampling import Sampling, layer_data
from fxquant.ptq.snapshot import restore, undone_on_error
from fxquant.ptq.solving.candidates import LOSSES, LossFn, OutputError, best_of
from fxquant.ptq.techniques.layerwise import batches, set_bias
from fxquant.ptq.walking.given_simulation import require_simulation
from fxquant.ptq.walking.held_out_outputs import output_errors
from fxquant.ptq.walking.walk import Environment, named_batches
from fxquant.ptq.walking.walk_cost import Cost, layer_lines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import fx

    from fxquant.graph.selectors import Selector
    from fxquant.ptq.layer_walk import Visit
    from fxquant.ptq.techniques.layerwise import ForwardFn
    from fxquant.ptq.walking.walk import FloatEnvironment, Progress, Walk
    from fxquant.sim import QuantizationSimModel

Symmetry = Literal["asym", "symfp", "symqt"]
# positions of a sample that say something new
_POSITIONS = 32
# where errors of layers fall and those of outputs do not: it makes up for the layers before
_FALLBACK: Symmetry = "asym"
_SYMMETRIES: tuple[Symmetry, ...] = get_args(Symmetry)


@dataclass(frozen=True)
class SeqMseParams:
    """Options of `apply_seq_mse`.

    Attributes:
        num_batches: batches of the data that are used; None: all, up to `data.samples`.
        num_candidates: steps that are tried.
        inp_symmetry: what is compared, with inputs X of the float and X' of the quantized model:
            "symqt" X'W' with X'W, "symfp" XW' with XW, "asym" X'W' with XW.
        loss_fn: "mse", "l1" or "sqnr".
        forward_fn: `forward_fn(model, batch)` calls the model on a batch.
        data: how much of the data is looked at; nothing is held out here.
    """

    num_batches: int | None = None
    num_candidates: int = 20
    inp_symmetry: Symmetry = "symqt"
    loss_fn: LossFn = "mse"
    forward_fn: ForwardFn | None = None
    data: DataOptions = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        require_number("num_batches", self.num_batches, 1, none=True)
        require_number("num_candidates", self.num_candidates, 1)
        choices = {"inp_symmetry": _SYMMETRIES, "loss_fn": LOSSES}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                fix = nearest(str(value), known) or f"use one of {', '.join(known)}"
                what = f"sequential MSE has no {name} {value!r}"
                raise ConfigError("FXQ299", what, fix=fix)


@dataclass(frozen=True)
class SeqMseLayer:
    """One layer.

    Attributes:
        path: its path.
        bitwidth: bits of its weight.
        ranges: how many ranges the weight has.
        changed: how many of them changed.
        error_before: mean of the loss over channels (and blocks) with the ranges as they were.
        error_after: the same with the ranges as they are; not above `error_before`.
        seconds: CPU seconds.
    """

    path: str
    bitwidth: int
    ranges: int
    changed: int
    error_before: float
    error_after: float
    seconds: float


@dataclass
class SeqMseReport:
    """What `apply_seq_mse` did.

    Attributes:
        layers: in the order of the graph.
        skipped: why other quantized weights are as they were, by path.
        loss_fn: what the errors of the layers are.
        cost: what it cost, of the last walk over the layers.
        inp_symmetry: what was compared in the end; None: nothing was changed, as the outputs did
            not come nearer to the float model's.
    """

    loss_fn: LossFn
    layers: list[SeqMseLayer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    inp_symmetry: Symmetry | None = None

    def __str__(self) -> str:
        heads = ("layer", "bits", "ranges", "changed", self.loss_fn, "before")
        rows = [
            (r.path, r.bitwidth, r.ranges, r.changed, f"{r.error_after:.3g}",
             f"{r.error_before:.3g}")
            for r in self.layers
        ]  # fmt: skip
        lines = layer_lines(heads, rows, self.skipped)
        if self.inp_symmetry is None and self.layers:
            lines.append("ranges are as they were: the outputs did not gain")
        return "\n".join([*lines, str(self.cost)])


def apply_seq_mse(
    sim: QuantizationSimModel,
    data_loader: Any,
    num_candidates: int | None = None,
    forward_fn: ForwardFn | None = None,
    modules_to_exclude: Iterable[Selector] | Selector | None = None,
    *,
    params: SeqMseParams | None = None,
    progress: Progress | None = None,
) -> SeqMseReport:
    """Choose and freeze the ranges of weights by the error of their layers' outputs.

    Of `num_candidates` equal shares of the range that clips nothing, and the range as it is, the
    best for each output channel (or tensor, or block) is taken. Layers before are quantized with
    what was chosen for them. Weights stay as they are, and so do biases, but for those that were
    corrected, which are corrected again. Any bit width has its ranges chosen. Where the data are
    few for the inputs of a layer the weight's own error counts beside that of the outputs.

    Where the model's outputs are then further from the float model's than they were, although the
    errors of the layers fell, all is done again with inputs of the float model beside those of the
    quantized one ("asym"); if that does not help either, ranges stay as they were.

    Args:
        sim: a calibrated simulation; it is changed in place.
        data_loader: an iterable of batches, as for `compute_encodings`.
        num_candidates: takes the place of that in `params`.
        forward_fn: takes the place of that in `params`.
        modules_to_exclude: modules of `sim.model`, classes, paths, globs or predicates.
        params: see `SeqMseParams`.
        progress: called after each node with (nodes done, nodes in all).

    Returns:
        What was done, layer by layer.

    Raises:
        ConfigError: FXQ296 and FXQ299, a parameter is wrong; FXQ297, there is no simulation.
        SelectorError: FXQ213 or FXQ241, there is nothing to exclude.
        CalibrationError: FXQ441 to FXQ447, as for `reconstruct`; FXQ455, too few batches.
        UncalibratedError: FXQ401, the simulation is not calibrated.

    Source: the "sequential MSE" of AIMET; the search is that of Nagel et al. 2021,
    arXiv:2106.08295, section 3.1, with the output's error for the weight's.

    Example:
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(64, 8)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), x, default_param_bw=3)
        >>> sim.compute_encodings([x])
        >>> report = apply_seq_mse(sim, [x])
        >>> report.layers[0].error_after <= report.layers[0].error_before
        True
    """
    require_simulation(sim, "apply_seq_mse")
    given = _merged(params or SeqMseParams(), num_candidates, forward_fn)
    options = given.data if given.num_batches is None else _all_samples(given.data)
    walk = LayerWise.of(sim.model, options, modules_to_exclude)
    walk.skipped |= {x.path: "its range is frozen" for x in walk.layers if x.frozen}
    walk.layers = [layer for layer in walk.layers if not layer.frozen]
    report = SeqMseReport(given.loss_fn, skipped=walk.skipped, cost=walk.cost)
    with undone_on_error(sim) as start:
        data = batches(sim.model, data_loader, given.num_batches, given.forward_fn)
        data = list(named_batches(sim.model, data, options.samples))
        symmetries = dict.fromkeys((given.inp_symmetry, _FALLBACK))
        for symmetry in symmetries:
            report.inp_symmetry = symmetry
            tried = replace(given, inp_symmetry=symmetry)
            if _gains(walk, data, tried, report, progress):
                return report
            restore(sim, start)
    report.inp_symmetry = None
    report.layers = [replace(x, changed=0, error_after=x.error_before) for x in report.layers]
    return report


def _gains(
    walk: LayerWise,
    data: list[Any],
    given: SeqMseParams,
    report: SeqMseReport,
    progress: Progress | None,
) -> bool:
    """Choose all ranges; whether the outputs come nearer to the float model's.

    Errors of layers may fall and those of outputs grow: what a smaller range clips has one sign,
    and makes what every layer puts out smaller.
    """
    before, errors = Environment(walk.gm, "before"), list[Tensor]()

    def settle(node: fx.Node, on: Walk, sim: Environment, exact: FloatEnvironment) -> None:
        if node.op == "output":
            errors.append(output_errors(on, node, exact, (sim, before), held_out=1))

    report.layers = walk.run(
        data, lambda visit: _choose(visit, given), progress, settle=settle, beside=(before,)
    )
    return not any(bool(found[0] > found[1]) for found in errors)


def _merged(
    params: SeqMseParams, candidates: int | None, forward_fn: ForwardFn | None
) -> SeqMseParams:
    return SeqMseParams(
        params.num_batches, params.num_candidates if candidates is None else candidates,
        params.inp_symmetry, params.loss_fn, forward_fn or params.forward_fn, params.data,
    )  # fmt: skip


def _all_samples(options: DataOptions) -> DataOptions:
    """Without a limit of samples: the number of batches is one."""
    return DataOptions(**{**vars(options), "samples": None})


def _choose(visit: Visit, given: SeqMseParams) -> SeqMseLayer:
    begin, layer = time.process_time(), visit.layer
    weight = layer.float_weight()
    grid, places = layer.grid()
    error = _output_error(visit, weight, grid.blocks, given)
    found, before, after = best_of(weight, grid, given.num_candidates, error)
    kept = layer.freeze(found, places)
    if not torch.equal(layer.float_bias(), layer.bias()):
        _correct_again(visit, given)
    if not torch.equal(kept.scale, found.scale):  # small integers times one step, as blocks have
        after = float(error(kept.weight(kept.nearest(weight))).mean())
    changed = int((kept.scale != grid.scale).sum())
    return SeqMseLayer(
        layer.path, int(layer.quantizer.bitwidth), grid.scale.numel(), changed, before, after,
        time.process_time() - begin,
    )  # fmt: skip


def _output_error(visit: Visit, weight: Tensor, blocks: Tensor, given: SeqMseParams) -> _LiveError:
    # one held out of one: all samples are looked at
    sampling = Sampling(given.data.columns, 1, given.data.seed)
    source = visit.float if given.inp_symmetry == "symfp" else visit.sim
    own = layer_data(visit.layer, visit.walk, source, visit.float, sampling)
    exact = None
    if given.inp_symmetry == "asym":
        exact = layer_data(visit.layer, visit.walk, visit.float, visit.float, sampling).held[0]
    live = own.live
    # positions of one sample are much alike
    rows = min(own.held[0].shape[1], _POSITIONS * sum(visit.walk.samples))
    error = OutputError(
        own.held[0], weight[:, :, live].float(), exact, _dense(blocks[live]), given.loss_fn,
        len(live) / rows,
    )  # fmt: skip
    return _LiveError(error, live, int(blocks.max()) + 1, torch.unique(blocks[live]))


def _correct_again(visit: Visit, given: SeqMseParams) -> None:
    """Correct a bias that was corrected before: it made up for the error of the ranges before."""
    layer, sampling = visit.layer, Sampling(given.data.columns, 1, given.data.seed)
    data = layer_data(layer, visit.walk, visit.sim, visit.float, sampling)
    columns = layer.quantized_weight()[:, :, data.live]
    set_bias(layer, data.seen.bias(columns))


@dataclass(frozen=True)
class _LiveError:
    """The error of a whole weight, of which only the live columns meet inputs."""

    error: OutputError
    live: Tensor
    blocks: int
    there: Tensor

    def __call__(self, weight: Tensor) -> Tensor:
        found = self.error(weight[:, :, self.live].float()).double()
        whole = found.new_zeros(*found.shape[:-1], self.blocks)
        whole[..., self.there] = found
        return whole


def _dense(blocks: Tensor) -> Tensor:
    """Numbers of blocks without gaps."""
    found: Tensor = torch.unique(blocks, return_inverse=True)[1]
    return found
