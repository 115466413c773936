"""GPTQ by its name: the engine with the published choices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fxquant.errors import ConfigError
from fxquant.ptq.engine import ReconstructionOptions, reconstruct
from fxquant.ptq.layer_walk import DataOptions, require_number
from fxquant.ptq.solving.solver import SolverOptions
from fxquant.ptq.techniques.layerwise import batches
from fxquant.ptq.walking.given_simulation import require_simulation

if TYPE_CHECKING:
    from fxquant.ptq.reconstruction_report import ReconstructionReport
    from fxquant.ptq.techniques.layerwise import ForwardFn
    from fxquant.ptq.walking.walk import Progress
    from fxquant.sim import QuantizationSimModel


@dataclass(frozen=True)
class GptqParams:
    """Options of `apply_gptq`.

    Attributes:
        num_batches: batches of the data that are used; None: all, up to `data.samples`.
        damping: added to the diagonal of the second moments, as a share of its mean.
        search_scale: whether the best scale is searched first; False: the calibrated scale, which
            is what the paper rounds on.
        data: how much of the data is looked at.
        forward_fn: `forward_fn(model, batch)` calls the model on a batch.
    """

    num_batches: int | None = None
    damping: float = 0.01
    search_scale: bool = True
    data: DataOptions = field(default_factory=DataOptions)
    forward_fn: ForwardFn | None = None

    def __post_init__(self) -> None:
        require_number("num_batches", self.num_batches, 1, none=True)
        given: Any = self.damping
        if not isinstance(given, int | float) or not 0 < given < 1:
            what = f"damping is {self.damping!r}"
            raise ConfigError("FXQ298", what, fix="pass a number between 0 and 1")


def apply_gptq(
    sim: QuantizationSimModel,
    data: Any,
    params: GptqParams | None = None,
    *,
    progress: Progress | None = None,
) -> ReconstructionReport:
    """Round the weights of a calibrated simulation by GPTQ, in place.

    Layer after layer: its own float weight is what is aimed at, its inputs are those of the
    simulation, whose layers before it are rounded already, and biases stay. `reconstruct` aims at
    the float model's outputs, improves the integers further and corrects biases, and is better.

    Weights then lie on their grids, which `compute_encodings` leaves alone from now on. A layer
    whose output on data held out does not come nearer to the float model's keeps what it has.

    Args:
        sim: the simulation.
        data: an iterable of batches, as for `compute_encodings`.
        params: see `GptqParams`.
        progress: called after each node with (nodes done, nodes in all).

    Returns:
        What was done, layer by layer.

    Raises:
        CalibrationError: FXQ441 to FXQ447, as for `reconstruct`; FXQ455, too few batches.
        UncalibratedError: FXQ401, the simulation is not calibrated.

    Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative
    Pre-trained Transformers", arXiv:2210.17323, algorithm 1, columns in the order of its
    "act-order"; groups of weights are the blocks of the quantizer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(64, 8)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), x, default_param_bw=3)
        >>> sim.compute_encodings([x])
        >>> report = apply_gptq(sim, [x])
        >>> report.layers[0].error_after <= report.layers[0].error_before
        True
    """
    require_simulation(sim, "apply_gptq")
    given = params or GptqParams()
    seen, every = given.data, 10**9
    options = ReconstructionOptions(
        SolverOptions("gptq", damping=given.damping, search_scale=given.search_scale),
        samples=every if seen.samples is None or given.num_batches else seen.samples,
        columns=seen.columns, held_out=seen.held_out, max_memory=seen.max_memory,
        folder=seen.folder, seed=seen.seed, threads=seen.threads, tables=False,
        float_target=False, correct_bias=False,
    )  # fmt: skip
    chosen = batches(sim.model, data, given.num_batches, given.forward_fn)
    return reconstruct(sim, chosen, options, progress=progress)
