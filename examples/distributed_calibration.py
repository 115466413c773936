"""Calibration on several processes: each sees a part of the data, all get one process's encodings.

Run: python -m examples.distributed_calibration [--processes N] [--out DIR]
     torchrun --nproc-per-node 2 -m examples.distributed_calibration

Without torchrun the processes are started here. In the end rank 0 calibrates on all data by
itself, compares, and exports.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

import fxquant
from fxquant import distributed

if TYPE_CHECKING:
    from torch import Tensor

BATCHES = 16


def network() -> nn.Sequential:
    """The same on all ranks: its weights are drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(784, 10),
        ).eval()  # fmt: skip


def batches(first: int = 0, step: int = 1) -> list[Tensor]:
    """Every so-many-th batch; in real life the part of the data set that a rank has."""
    return [
        torch.randn(16, 3, 17, 17, generator=torch.Generator().manual_seed(number))
        for number in range(first, BATCHES, step)
    ]


def ranges(sim: fxquant.QuantizationSimModel) -> dict[str, Tensor]:
    """The ends of all ranges, by the path of their quantizer."""
    return {
        f"{path}.{end}": getattr(quantizer, end).detach()
        for path, quantizer in sim.named_quantizers() for end in ("min", "max")
        if getattr(quantizer, end, None) is not None
    }  # fmt: skip


def work(out: str) -> None:
    """What every rank does, in a process group that exists; it ends the group."""
    rank, size = dist.get_rank(), dist.get_world_size()
    sim = fxquant.QuantizationSimModel(network(), batches()[0])
    mine = batches(rank, size)
    distributed.compute_encodings(sim, mine, timeout=120.0)
    click.echo(f"rank {rank} of {size} calibrated on {len(mine)} of {BATCHES} batches")
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        compare(sim)
        proof = sim.export(out, "calibrated", batches()[0])
        click.echo(f"{out}/calibrated.onnx: proven: {proof.proven}")


def compare(sim: fxquant.QuantizationSimModel) -> None:
    """Calibrate once more, on all data, and count what is equal."""
    alone = fxquant.QuantizationSimModel(network(), batches()[0])
    alone.compute_encodings(batches())
    wanted, found = ranges(alone), ranges(sim)
    same = sum(torch.equal(found[path], end) for path, end in wanted.items())
    click.echo(f"{same} of {len(wanted)} ends of ranges are bit for bit those of one process")


def start(rank: int, size: int, store: str, out: str) -> None:
    """A process that torchrun did not start."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    work(out)


@click.command()
@click.option("--processes", default=2, show_default=True, type=click.IntRange(1))
@click.option("--out", default="out", show_default=True, metavar="DIR", help="Where files go.")
def main(processes: int, out: str) -> None:
    """Calibrate on several processes, and compare with one."""
    if "RANK" in os.environ:  # under torchrun
        dist.init_process_group("gloo")
        work(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = (Path(folder) / "store").as_uri()
        spawn(start, (processes, store, out), nprocs=processes)


if __name__ == "__main__":
    main()
