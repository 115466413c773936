"""Reconstruction over ranks: every process walks its part of the data, all get the same layers.

A layer's statistics are moments and rows held out. Every rank looks at the positions that one
process with the data of all ranks would look at, and sends what it found. Moments are merged in the
order of the ranks; rank 0 solves and sends the layer's state, so that ranks are alike whatever
processors they run on. Data never leave their rank, but for the rows held out.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save

from fxquant.distributed.exchange import Ranks
from fxquant.distributed.identity import calibration_identity
from fxquant.ptq import engine
from fxquant.ptq.engine import ReconstructionOptions
from fxquant.ptq.reconstruction_report import LayerReport
from fxquant.ptq.walking.parts_of_data import WholeData
from fxquant.quantization.digest import tensors_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor
    from torch.distributed import ProcessGroup

    from fxquant.ptq.layers.layer import Layer
    from fxquant.ptq.reconstruction_report import ReconstructionReport
    from fxquant.ptq.walking.walk import Progress
    from fxquant.sim import QuantizationSimModel
    from fxquant.tracking.events import OnEvent

_REPORT = "report"  # beside the names of a layer's state


def reconstruct(
    sim: QuantizationSimModel,
    data: Any,
    options: ReconstructionOptions | None = None,
    *,
    group: ProcessGroup | None = None,
    timeout: float | None = None,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
) -> ReconstructionReport:
    """`fxquant.ptq.reconstruct` on the data of all ranks; every rank calls this with its own part.

    Afterwards weights, ranges and biases are the same on all ranks, bit for bit. Every layer is
    found from the rows that one process would look at that had the batches of rank 0, then those
    of rank 1 and so on; sums over them are put together in another order and may differ in their
    last bits, and so may integers that are as good as their neighbours.

    Args:
        sim: a calibrated simulation, the same on all ranks.
        data: batches of this rank.
        options: as for `fxquant.ptq.reconstruct`, the same on all ranks. `samples` and `columns`
            are those of all ranks together; each uses its share of the samples. With a `folder`
            finished layers are kept by rank 0.
        group: the processes; default: all of `torch.distributed`.
        timeout: seconds to wait for ranks that are slower; default: that of the group.
        progress: called after each node on this rank.
        on_event: called on this rank, as for `fxquant.ptq.reconstruct`.

    Returns:
        What was done, the same on all ranks but for what the walk of this rank cost.

    Raises:
        TrainingError: FXQ810 another rank failed, FXQ811 one did not answer in time, FXQ812 one
            has another model, configuration, weights, ranges or options, FXQ814 there is no group
            of processes.
        FxQuantError: what `fxquant.ptq.reconstruct` raises, on the rank that it is of.
    """
    ranks, given = Ranks(group, timeout), options or ReconstructionOptions()
    with ranks.telling():
        share = replace(given, samples=-(-given.samples // ranks.size))
        parts = _PartOfRanks(ranks)
        parts.identity = calibration_identity(sim) | {
            "weights and ranges": tensors_digest(sim.model.state_dict()),
            "options": json.dumps(given.of_the_result(), sort_keys=True, default=repr),
            "use of a folder": str(given.folder is not None),
        }
        return engine.reconstruct(
            sim, data, share, progress=progress, on_event=on_event, parts=parts
        )


class _PartOfRanks(WholeData):
    """The part of the data that this rank has.

    Args:
        ranks: the processes.

    Attributes:
        identity: names and texts that must be the same on all ranks.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self.decides = ranks, ranks.rank == 0
        self.identity: dict[str, str] = {}

    def begin(self, samples: Sequence[int]) -> None:
        """Find out what lies before this part."""
        self._ranks.agree(self.identity)
        own = {"part": torch.tensor([len(samples), sum(samples)])}
        every = torch.stack([part["part"] for part in self.from_each("sizes", own)])
        before = every[: self._ranks.rank].sum(0).tolist()
        self.batches_before, self.samples_before = before
        self.samples = int(every[:, 1].sum())

    def from_each(self, step: str, own: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
        """Tensors of every rank, one rank's at a time; they arrive on the CPU."""
        self._ranks.agree({"step": step})
        for content in self._ranks.from_each(save(_portable(own))):
            yield load(content)

    def unknown(self, found: Any) -> bool:
        """Whether rank 0 knows nothing of a layer."""
        (first, *_) = [part["unknown"] for part in self.from_each(
            "layers that are finished", {"unknown": torch.tensor(found is None)}
        )]  # fmt: skip
        return bool(first)

    def settled(self, layer: Layer, found: Any) -> Any:
        """Take over what rank 0 found."""
        own: dict[str, Tensor] = {}
        if self.decides:
            text = bytearray(json.dumps(asdict(found)).encode())
            own = layer.state() | {_REPORT: torch.frombuffer(text, dtype=torch.uint8)}
        self._ranks.agree({"step": f"result for {layer.path}"})
        state = load(self._ranks.from_one(0, save(_portable(own))))
        if self.decides:
            return found
        report = LayerReport(**json.loads(state.pop(_REPORT).numpy().tobytes()))
        if report.changed != "nothing":
            layer.set_state(state)
        return report


def _portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
