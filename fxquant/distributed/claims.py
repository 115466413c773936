"""Which rank writes to which path, so that no rank replaces what another one has written."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from fxquant.errors import CheckpointError


def claim(path: str | Path) -> None:
    """Make a path that of this rank, for as long as the group of processes lasts.

    It costs no exchange: a rank may save alone, and nobody waits. One process alone may write
    where it likes.

    Raises:
        CheckpointError: FXQ618, another rank has written to the path.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    from torch.distributed import distributed_c10d  # only here: not every build of torch has it

    rank = str(dist.get_rank())
    # the store that all ranks met in: the first to come wins, whatever the file system does
    store = distributed_c10d._get_default_store()
    key = f"fxquant/written/{Path(path).absolute()}"
    owner = store.compare_set(key, "", rank).decode()
    if owner != rank:
        what = f"rank {rank} would replace what rank {owner} wrote to {path}"
        fix = "give every rank a path of its own, such as state/0 and state/1, or let one rank save"
        raise CheckpointError("FXQ618", what, fix=fix)
