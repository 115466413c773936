"""Calibration over ranks: every process sees its part of the data, all of them choose alike.

Statistics of quantizers merge exactly and in any order: extremes, histograms whose bins follow from
the extremes, counts of positions. Every rank merges those of all ranks, in the order of the ranks,
and chooses ranges from the same numbers. Nothing but statistics is sent: their size depends on the
number of quantizers, not on the data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safetensors.torch import load, save

from fxquant.calibrate import NOT_GIVEN
from fxquant.distributed.exchange import Ranks
from fxquant.distributed.identity import calibration_identity
from fxquant.distributed.statistics_of import Merging, collected, require_mergeable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import fx
    from torch.distributed import ProcessGroup

    from fxquant.calibrate import Progress
    from fxquant.sim import QuantizationSimModel


def compute_encodings(
    sim: QuantizationSimModel,
    data: Callable[..., Any] | Iterable[Any],
    args: Any = NOT_GIVEN,
    *,
    group: ProcessGroup | None = None,
    timeout: float | None = None,
    progress: Progress | None = None,
    threads: int | None = 1,
) -> None:
    """Calibrate on the data of all ranks; every rank calls this with its own part.

    Afterwards encodings are the same on all ranks, bit for bit, and those of one process that saw
    the batches of all ranks. Merging changes nothing: where a batch is computed on another number
    of threads or another kind of processor, its activations may differ in the last bit.

    Args:
        sim: the simulation; the same on all ranks.
        data: batches of this rank, or a callback, as for `sim.compute_encodings`.
        args: second argument of the callback.
        group: the processes; default: all of `torch.distributed`.
        timeout: seconds to wait for ranks that are slower; default: that of the group.
        progress: called after each batch of this rank.
        threads: of torch, as for `sim.compute_encodings`.

    Raises:
        TrainingError: FXQ810 another rank failed, FXQ811 one did not answer in time, FXQ812 one
            has another model, configuration or weights, FXQ813 the scheme depends on the order of
            the data ("moving_average"), FXQ814 there is no group of processes.
        CalibrationError: the data of this rank are empty or wrong; the other ranks are told.
    """
    ranks = Ranks(group, timeout)

    def merge(model: fx.GraphModule) -> None:
        ranks.agree(calibration_identity(sim))
        merging = Merging(model)
        for part in ranks.from_each(save(collected(model))):
            merging.take(load(part))
        merging.give()

    with ranks.telling():
        if ranks.size > 1:
            require_mergeable(sim.model)
        several = merge if ranks.size > 1 else None
        sim.compute_encodings(data, args, progress=progress, threads=threads, merge=several)
