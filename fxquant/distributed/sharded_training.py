"""Simulations whose parameters are sharded over ranks (FSDP2).

`torch.distributed.fsdp.fully_shard` shards along the first axis, which a range of one number does
not have, and gathers a layer's parameters before it runs, which is when a quantized layer rounds
them: weights shard as in floating point. Ranges are a few numbers: every rank keeps them all, and
their gradients are averaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from fxquant.distributed.exchange import Ranks
from fxquant.errors import TrainingError
from fxquant.nn.calibration import follow_parameters
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn


def fully_shard(model: nn.Module, layers: Iterable[nn.Module] = (), **options: Any) -> nn.Module:
    """Shard a calibrated simulation's parameters over all ranks, in place.

    Make the optimizer afterwards. With mixed precision ranges and their arithmetic stay in float32.

    Args:
        model: a simulation's model, `sim.model`.
        layers: modules of it that are gathered and freed by themselves, such as its blocks, from
            the innermost to the outermost.
        options: of `torch.distributed.fsdp.fully_shard`, such as `mesh` and `mp_policy`.

    Returns:
        The model.

    Raises:
        TrainingError: FXQ814, there is no group of processes.
    """
    from torch.distributed.fsdp import fully_shard as shard  # only here: it takes long to import

    ranks = Ranks()
    ranges = {
        p for m in model.modules() if isinstance(m, QuantizerBase)
        for p in m.parameters(recurse=False)
    }  # fmt: skip
    for part in (*layers, model):
        shard(part, ignored_params=ranges, **options)

    def average(end: Tensor) -> None:
        if end.grad is not None:
            dist.all_reduce(end.grad, group=ranks.group)
            end.grad.div_(ranks.size)

    for end in (p for p in ranges if p.requires_grad):
        end.register_post_accumulate_grad_hook(average)
    return model


@torch.no_grad()
def gather(model: nn.Module, into: nn.Module) -> None:
    """Copy the trained state of a sharded model into one that is not; all ranks take part.

    Args:
        model: what `fully_shard` returned.
        into: the model of a simulation that was made in the same way, for export and checkpoints.

    Raises:
        TrainingError: FXQ815, the two are no simulations of one model; FXQ810 another rank failed,
            FXQ811 one did not answer.
    """
    from torch.distributed.fsdp import FSDPModule  # only here, as above

    sharded = [m for m in model.modules() if isinstance(m, FSDPModule)]
    ranks = Ranks()
    ranks.agree({"sharded parts": str(len(sharded))})
    with ranks.answered():
        for part in sharded:
            part.unshard()
    for module in model.modules():
        follow_parameters(module)  # which waits for whole weights
    ours, theirs = (dict((*m.named_parameters(), *m.named_buffers())) for m in (model, into))
    fits = ours.keys() == theirs.keys() and all(
        ours[name].shape == value.shape for name, value in theirs.items()
    )
    if fits:
        for name, value in theirs.items():
            value.copy_(ours[name])
    for part in sharded:
        part.reshard()
    if not fits:
        what = "the model that is to take the sharded parameters has others"
        raise TrainingError("FXQ815", what, fix="make it as the one that was sharded was made")
