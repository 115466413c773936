"""What a step of training in simulation takes in time and memory, against one in floating point.

Networks of full size, every tensor quantized, one thread. Times are CPU seconds in turns in one
process, the fastest each. Peaks of memory are those of one step, beyond what the process holds
before it, each in a process of its own, in which glibc gives freed tensors back to the system: by
default it keeps the holes between tensors that stay, as many as there are short-lived tensors, and
the peak would be that of a heap. `--heap` measures that.

Run: python -m benchmarks.training_steps [--batch N] [--heap] [--json FILE] [NETWORK ...]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from benchmarks.measure import one_thread, peak_bytes, write_json
from benchmarks.networks import build, inputs
from fxquant import QuantizationSimModel
from fxquant.io.text_tables import table
from fxquant.onnx.ort.cpu import this_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

DEFAULT = ("resnet18", "mobilenet_v2", "vit_tiny", "bert_6_layers")
KINDS = {"float": "", "fixed": "min_max", "learned": "training_range_learning_with_tf_init"}


def network_of(name: str, kind: str, x: tuple[Tensor, ...]) -> nn.Module:
    """The float network or its calibrated simulation, in training."""
    model = build(name)
    if kind == "float":
        return model.train()
    sim = QuantizationSimModel(model, x, KINDS[kind])
    sim.compute_encodings([x])
    return sim.model.train()


def step_of(net: nn.Module, x: tuple[Tensor, ...]) -> Callable[[], None]:
    """Forward and backward; gradients are new, as after `zero_grad`."""

    def step() -> None:
        net.zero_grad()
        net(*x).square().mean().backward()

    return step


def peak_in_a_process(name: str, kind: str, batch: int, *, heap: bool) -> int | None:
    """Bytes that one step adds, measured in a new process; None where it cannot be."""
    command = [sys.executable, "-m", "benchmarks.training_steps", "--peak", kind, name]
    done = subprocess.run(
        [*command, "--batch", str(batch)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | ({} if heap else {"MALLOC_MMAP_THRESHOLD_": "65536"}),
    )
    found: int | None = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, batch: int, rounds: int, *, heap: bool) -> dict[str, Any]:
    """One row."""
    x = inputs(name, batch)
    steps = {kind: step_of(network_of(name, kind, x), x) for kind in KINDS}
    best = dict.fromkeys(KINDS, float("inf"))
    for number in range(rounds + 1):
        for kind, step in steps.items():
            begin = time.process_time()
            step()
            if number:
                best[kind] = min(best[kind], time.process_time() - begin)
    peaks = {kind: peak_in_a_process(name, kind, batch, heap=heap) for kind in KINDS}
    row: dict[str, Any] = {"network": name, "float_s": best["float"], "float_peak": peaks["float"]}
    for kind in ("fixed", "learned"):
        whole, own = peaks["float"], peaks[kind]
        row[f"time_{kind}"] = best[kind] / best["float"]
        row[f"peak_{kind}"] = None if not whole or own is None else own / whole
    return row


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--heap", is_flag=True, help="Peaks with what the heap does not give back.")
@click.option("--peak", type=click.Choice(list(KINDS)), help="Print the peak of one step only.")
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(
    networks: tuple[str, ...],
    batch: int,
    rounds: int,
    heap: bool,
    peak: str | None,
    path: str | None,
) -> None:
    """Time and memory of a step of training against floating point, one thread."""
    one_thread()
    if peak:
        x = inputs(networks[0], batch)
        step = step_of(network_of(networks[0], peak, x), x)
        step()  # what is made once is no part of a step
        click.echo(json.dumps(peak_bytes(step)[0]))
        return
    rows = [measure(name, batch, rounds, heap=heap) for name in networks or DEFAULT]
    cells = [
        tuple(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows
    ]
    click.echo(table(list(rows[0]), cells))
    click.echo(f"measured on {this_cpu()}")
    write_json(rows, path)


if __name__ == "__main__":
    main()
