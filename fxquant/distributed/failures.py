"""Ranks that train together end together: one that fails is named by the others.

Collectives of a training loop are torch's: a rank that fails leaves the others waiting in a
reduction until its process ends or the group's timeout has passed, and what they raise then tells
of a socket. Inside of `fail_together` the rank that fails writes down why, in the store that all
ranks met in, and the others read it.
"""

from __future__ import annotations

import itertools
import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from fxquant.distributed.exchange import Ranks, described, failure_of, no_answer
from fxquant.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("fxquant")

_blocks = itertools.count()  # ranks enter the same blocks in the same order
#: parts of what torch raises when a rank is gone or late; gloo has no type for it
_GONE = ("gloo", "NCCL", "Connection closed", "Connection reset", "monitoredBarrier")
_KNOWN = ("FXQ810", "FXQ811", "FXQ812")  # errors that all ranks get


@contextmanager
def fail_together() -> Iterator[None]:
    """A block in which an error of one rank ends all of them, with a typed error on the others.

    The others notice when the process that failed ends. For one that hangs, or goes on after its
    error, they wait as long as the timeout that `torch.distributed.init_process_group` was given.

    Raises:
        TrainingError: FXQ810 another rank failed: its error is named; FXQ811 one was killed or did
            not answer in time; FXQ814 there is no group of processes.

    Example:
        >>> def main(model, optimizer, loader):
        ...     with fail_together():
        ...         for x, y in loader:
        ...             optimizer.zero_grad()
        ...             torch.nn.functional.cross_entropy(model(x), y).backward()
        ...             optimizer.step()
    """
    ranks = Ranks()
    notes = _Notes(next(_blocks), ranks)
    try:
        yield
    except TrainingError as error:
        if error.code not in _KNOWN:
            notes.leave(error)
        raise
    except Exception as error:
        if not (isinstance(error, RuntimeError) and _is_of_another(error)):
            notes.leave(error)
            raise
        failed = notes.found()
        told = no_answer(ranks.rank, error) if failed is None else failure_of(*failed)
        raise told from error


class _Notes:
    """What ranks write down for each other when they fail.

    Args:
        block: number of the block.
        ranks: the processes.
    """

    def __init__(self, block: int, ranks: Ranks) -> None:
        from torch.distributed import distributed_c10d  # only here: not every build of torch has it

        self._torch: Any = distributed_c10d
        self._rank = ranks.rank
        self._keys = [f"fxquant/failed/{block}/{rank}" for rank in range(ranks.size)]

    def leave(self, error: Exception) -> None:
        """Say why this rank fails."""
        try:
            store = self._torch._get_default_store()
            store.set(self._keys[self._rank], json.dumps(described(error)))
        except RuntimeError as lost:  # the error of this rank is the one to raise
            log.warning("the other ranks could not be told: %s", lost)

    def found(self) -> tuple[int, dict[str, Any]] | None:
        """The first rank that has said why it failed; None: nobody has, or the store is gone."""
        try:
            store = self._torch._get_default_store()
            for rank, key in enumerate(self._keys):
                if store.check([key]):
                    return rank, json.loads(store.get(key))
        except RuntimeError:  # the rank that keeps the store is the one that is gone
            return None
        return None


def _is_of_another(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(part in str(error) for part in _GONE)
