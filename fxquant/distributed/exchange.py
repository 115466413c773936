"""What ranks tell each other: that they are there, that they failed, and bytes.

Every exchange begins with a status of each rank. A rank that has failed says so and raises its own
error; the others raise one that names it, and nobody waits for somebody who does not come. Who is
dead or hangs is told by the timeout. Nothing is pickled: what arrives is parsed as JSON or tensors.
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from fxquant.errors import FxQuantError, TrainingError
from fxquant.io.reading import reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from torch.distributed import ProcessGroup

log = logging.getLogger("fxquant")


class Ranks:
    """The processes of a group.

    Args:
        group: the processes; None: all.
        timeout: seconds to wait for the others; None: that of the group.

    Raises:
        TrainingError: FXQ814, there is no group of processes.

    Attributes:
        rank: number of this process in the group.
        size: number of processes.
    """

    def __init__(self, group: ProcessGroup | None = None, timeout: float | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            what = "torch.distributed has no group of processes"
            fix = "start with torchrun and call torch.distributed.init_process_group() before"
            raise TrainingError("FXQ814", what, fix=fix)
        self.group = group if group is not None else dist.group.WORLD
        if dist.get_rank(self.group) < 0:
            what = "this process is not of the group"
            raise TrainingError("FXQ814", what, fix="call it on the ranks of the group alone")
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.timeout = None if timeout is None else timedelta(seconds=timeout)
        self._exchanging = False
        on_cpu = "cpu:" in dist.get_backend_config(self.group)
        self.device = torch.device("cpu")
        accelerator = torch.accelerator.current_accelerator()
        if not on_cpu and accelerator is not None:
            self.device = accelerator

    def agree(self, identity: Mapping[str, str]) -> None:
        """Go on when all ranks are here and have the same in hand.

        Args:
            identity: names and texts that must be the same on all ranks.

        Raises:
            TrainingError: FXQ810 another rank failed, FXQ811 one did not answer, FXQ812 one has
                something else in hand.
        """
        self._exchanging = True
        told = self._status({"identity": dict(identity)})
        for rank, status in enumerate(told):
            if "error" in status:
                raise failure_of(rank, status["error"])
        for rank, status in enumerate(told):
            for name, text in told[0]["identity"].items():
                if status["identity"].get(name) != text:
                    what = f"rank {rank} differs from rank 0 in its {name}"
                    fix = "build the same thing on all ranks, with the same weights and options"
                    raise TrainingError("FXQ812", what, fix=fix)
        self._exchanging = False

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the others, who are in `agree` or will be, what this rank raises inside.

        An error of an exchange is known to all who took part in it.
        """
        try:
            yield
        except Exception as error:
            if self.size > 1 and not self._exchanging:
                self._tell(error)
            raise

    def _tell(self, error: Exception) -> None:
        try:
            self._status({"error": described(error)})
        except TrainingError as lost:  # the error of this rank is the one to raise
            log.warning("the other ranks could not be told: %s", lost.what)

    def from_each(self, own: bytes) -> Iterator[bytes]:
        """What every rank gives, in the order of the ranks; one at a time is in memory.

        Raises:
            TrainingError: FXQ811, a rank did not answer.
        """
        for source in range(self.size):
            yield self.from_one(source, own)

    def from_one(self, source: int, own: bytes) -> bytes:
        """What one rank gives; what the others hand in does not count.

        Raises:
            TrainingError: FXQ811, a rank did not answer.
        """
        self._exchanging = True
        with self.answered():
            size = self._tensor([len(own)])
            self._broadcast(size, source)
            content = self._bytes(own) if source == self.rank else None
            if content is None:
                content = torch.empty(int(size), dtype=torch.uint8, device=self.device)
            self._broadcast(content, source)
        self._exchanging = False
        return content.cpu().numpy().tobytes()

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Turn what torch raises when a rank is gone or late into a typed error."""
        try:
            yield
        except RuntimeError as error:
            raise no_answer(self.rank, error) from error

    def _status(self, own: dict[str, Any]) -> list[dict[str, Any]]:
        message = json.dumps(own).encode()
        with self.answered():
            if dist.get_backend(self.group) == "gloo":
                # names the rank that is missing
                dist.monitored_barrier(self.group, timeout=self.timeout, wait_all_ranks=True)
            sizes = [self._tensor([0]) for _ in range(self.size)]
            self._wait(dist.all_gather(sizes, self._tensor([len(message)]), self.group, True))
            most = max(int(size) for size in sizes)
            padded = self._bytes(message.ljust(most))
            found = [torch.empty_like(padded) for _ in sizes]
            self._wait(dist.all_gather(found, padded, self.group, True))
        return [json.loads(part.cpu().numpy().tobytes()) for part in found]

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        self._wait(dist.broadcast(tensor, group=self.group, group_src=source, async_op=True))

    def _wait(self, work: Any) -> None:
        if self.timeout is None:
            work.wait()
        else:
            work.wait(self.timeout)

    def _tensor(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)

    def _bytes(self, content: bytes) -> Tensor:
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).to(self.device)


def described(error: Exception) -> dict[str, Any]:
    """An error as plain data, for the other ranks."""
    if isinstance(error, FxQuantError):
        return error.to_dict()
    return {"error": type(error).__name__, "code": None, "what": reason(error), "at": None}


def failure_of(rank: int, error: dict[str, Any]) -> TrainingError:
    """What is raised where another rank has failed, given what `described` said of its error."""
    code = error["code"] or error["error"]
    what = f"rank {rank} failed: {code}: {error['what'].removeprefix(f'{code}: ')}"
    return TrainingError("FXQ810", what, at=error["at"], fix=f"look at rank {rank}'s output")


def no_answer(rank: int, error: Exception) -> TrainingError:
    """What is raised on a rank where torch says that another one is gone or late."""
    what = f"rank {rank} got no answer from another rank: {reason(error)}"
    fix = "look at the output of the other ranks; a slow one needs a longer timeout"
    return TrainingError("FXQ811", what, fix=fix)
