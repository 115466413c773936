"""One rank fails in the middle of training: the others end too, with an error that says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fxquant import distributed
from fxquant.errors import FxQuantError, TrainingError
from tests.distributed.test_training_over_ranks import batch, simulation, trained
from tests.helpers.ranks import ROOT, SECONDS

#: how rank 1 fails -> what rank 0 gets
TOLD = {
    "raises": "FXQ810: rank 1 failed: OSError: the disk is gone",
    "is killed": "FXQ811: rank 0 got no answer",
    "hangs": "FXQ811: rank 0 got no answer",
}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked")


def _fails(how: str) -> None:
    if how == "raises":
        raise OSError(5, "the disk is gone")
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)  # hangs


def _rank(rank: int, how: str, folder: Path) -> None:
    """Train; the second rank fails after a step. What the first one gets lies in a file."""
    store, timeout = f"file://{folder / 'store'}", timedelta(seconds=5)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)
    sim = simulation("learning")
    distributed.compute_encodings(sim, [batch(0, rank, 2)[0]])
    model = nn.parallel.DistributedDataParallel(sim.model)
    try:
        with distributed.fail_together():
            trained(sim, model, rank, 2)
            if rank:
                _fails(how)
            trained(sim, model, rank, 2)
    except FxQuantError as error:
        (folder / str(rank)).write_text(f"{error.code}: {error.what}")


def pairs(folder: str) -> None:
    """In a process of its own: two ranks for every way to fail, all at once."""
    torch.set_num_threads(1)
    children = {}
    for how in TOLD:
        (home := Path(folder) / how).mkdir()
        for rank in range(2):
            child = os.fork()
            if child == 0:
                try:
                    _rank(rank, how, home)
                finally:
                    os._exit(0)
            children[how, rank] = child
    for how in TOLD:
        os.waitpid(children[how, 0], 0)
        os.kill(children[how, 1], signal.SIGKILL)  # it may still hang
        os.waitpid(children[how, 1], 0)


def test_a_rank_that_fails_in_training(tmp_path: Path) -> None:
    code = f"from tests.distributed.test_failures import pairs; pairs({str(tmp_path)!r})"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, timeout=SECONDS, check=True
    )
    for how, told in TOLD.items():
        assert (tmp_path / how / "0").read_text().startswith(told), how
    assert not (tmp_path / "raises" / "1").exists(), "it has an error of its own"


def test_an_error_of_this_rank_is_left_as_it_is(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 's'}", rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match="shapes cannot be"), distributed.fail_together():
            torch.ones(2, 3) @ torch.ones(2, 3)
    finally:
        dist.destroy_process_group()


def test_without_a_group_there_is_an_error() -> None:
    with pytest.raises(TrainingError, match="FXQ814"), distributed.fail_together():
        pass
