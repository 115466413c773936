"""Several gloo processes for a test: one starts, imports what they run, and forks them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).parent.parent.parent
SECONDS = 120  # for all that they do; they are not left behind


def results_of(work: str, size: int, folder: Path) -> list[Any]:
    """What every rank returns.

    Args:
        work: `module:function`; the function takes (rank, size, folder).
        size: number of processes.
        folder: where they may write.
    """
    code = f"from tests.helpers.ranks import start; start({work!r}, {size}, {str(folder)!r})"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, timeout=SECONDS,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.result", weights_only=True) for rank in range(size)]


def start(work: str, size: int, folder: str) -> None:
    """In the new process: fork the ranks and wait for them."""
    torch.set_num_threads(1)
    module, _, name = work.partition(":")
    function = getattr(importlib.import_module(module), name)
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os._exit(_run(function, rank, size, Path(folder)))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(map(abs, codes)))


def _run(function: Any, rank: int, size: int, folder: Path) -> int:
    try:
        store = f"file://{folder / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
        torch.save(function(rank, size, folder), folder / f"{rank}.result")
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
