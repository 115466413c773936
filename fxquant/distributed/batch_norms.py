"""Running statistics of batch norms, made the same on all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from fxquant.distributed.exchange import Ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def average_batch_norms(
    model: nn.Module, *, group: ProcessGroup | None = None, timeout: float | None = None
) -> None:
    """Give all ranks the mean of their running statistics; to be called by every rank.

    `DistributedDataParallel` hands those of rank 0 on when a step begins, and leaves those of the
    last step apart. A running mean is linear in what was seen: its mean over ranks is that of all
    data. A running variance is then that within the batches of the ranks.

    Args:
        model: a simulation's model, or what wraps it.
        group: the processes; default: all.
        timeout: seconds to wait for the others; default: that of the group.

    Raises:
        TrainingError: FXQ810 another rank failed, FXQ811 one did not answer, FXQ814 there is no
            group of processes.
    """
    ranks = Ranks(group, timeout)
    norms: list[Any] = [
        m for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]  # fmt: skip
    sizes = [tuple(m.running_mean.shape) for m in norms]
    ranks.agree({"batch norms": str(sizes)})
    with torch.no_grad(), ranks.answered():
        for norm in norms:
            for statistic in (norm.running_mean, norm.running_var):
                dist.all_reduce(statistic, group=ranks.group)
                statistic.div_(ranks.size)
