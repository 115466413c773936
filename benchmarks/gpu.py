"""What simulating, calibrating and training cost on an accelerator, and whether results agree.

Times are against the float network on the same device. Beside them stands how often the host waits
for the device, which should be never where ranges are fixed: encodings are used where they lie.
`apart` is the largest difference to the CPU's outputs, relative to the largest output. The whole
takes a few minutes on one GPU; `--device cpu --rounds 1 --batch 2` tries the script without one.

Run: python -m benchmarks.gpu [--device DEVICE] [--batch N] [--json FILE] [NETWORK ...]
"""

from __future__ import annotations

import copy
import time
import warnings
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor

from benchmarks.measure import write_json
from benchmarks.networks import build, inputs
from fxquant import QuantizationSimModel
from fxquant.io.text_tables import table
from fxquant.ptq import reconstruct

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

DEFAULT = ("resnet18", "mobilenet_v2", "vit_tiny", "bert_6_layers")
SCHEMES = {"fixed": "min_max", "learned": "training_range_learning_with_tf_init"}
Row = dict[str, Any]


def seconds(call: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """The fastest of some calls, after one that is not counted; wall time with the device idle."""
    best = float("inf")
    for number in range(rounds + 1):
        wait(device)
        begin = time.perf_counter()
        call()
        wait(device)
        if number:
            best = min(best, time.perf_counter() - begin)
    return best


def wait(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def host_waits(call: Callable[[], Any], device: torch.device) -> int | None:
    """How often a call waits for the device; only CUDA tells."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


def step_of(net: nn.Module, x: tuple[Tensor, ...]) -> Callable[[], None]:
    """One step of training."""
    optimizer = torch.optim.SGD(net.parameters(), 0.0)

    def step() -> None:
        optimizer.zero_grad()
        net(*x).square().mean().backward()
        optimizer.step()

    return step


def simulated(model: nn.Module, x: tuple[Tensor, ...], scheme: str) -> QuantizationSimModel:
    """A calibrated simulation on the device of the model."""
    sim = QuantizationSimModel(model, x, scheme)
    sim.compute_encodings([x])
    return sim


@torch.no_grad()
def difference(name: str, model: nn.Module, x: tuple[Tensor, ...]) -> float:
    """Largest difference to the CPU's result, relative to the largest output."""
    there = simulated(copy.deepcopy(model), x, "min_max").model(*x).cpu().as_subclass(Tensor)
    on_cpu = tuple(t.cpu() for t in x)
    here = simulated(build(name), on_cpu, "min_max").model(*on_cpu).as_subclass(Tensor)
    return float((there - here).abs().max() / here.abs().max())


def measure(name: str, device: torch.device, batch: int, rounds: int, engine: bool) -> Row:
    """One row."""
    model = build(name).to(device)
    x = tuple(t.to(device) for t in inputs(name, batch))
    sims = {kind: simulated(model, x, scheme) for kind, scheme in SCHEMES.items()}
    with torch.no_grad():
        plain = seconds(lambda: model(*x), device, rounds)
        forward = seconds(lambda: sims["fixed"].model(*x), device, rounds)
        waits = host_waits(lambda: sims["fixed"].model(*x), device)
    calibrate = seconds(lambda: sims["fixed"].compute_encodings([x]), device, rounds)
    row: Row = {
        "network": name, "batch": batch, "float_ms": plain * 1e3, "sim": forward / plain,
        "calibrate": calibrate / plain, "waits_forward": waits,
        "apart": difference(name, model, x),
    }  # fmt: skip
    float_step = seconds(step_of(copy.deepcopy(model).train(), x), device, rounds)
    for kind, sim in sims.items():
        step = step_of(sim.model.train(), x)
        row[f"step_{kind}"] = seconds(step, device, rounds) / float_step
        row[f"waits_{kind}"] = host_waits(step, device)
    row["engine_s"] = None
    if engine:
        sim = simulated(model, x, "min_max")
        wait(device)
        begin = time.perf_counter()
        reconstruct(sim, [x])
        wait(device)
        row["engine_s"] = time.perf_counter() - begin
    return row


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--device", default="cuda", show_default=True)
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1))
@click.option("--engine/--no-engine", default=True, show_default=True, help="Time the engine, too.")
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(
    networks: tuple[str, ...], device: str, batch: int, rounds: int, engine: bool, path: str | None
) -> None:
    """Simulation, calibration, training and the engine on an accelerator against float."""
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        msg = "there is no CUDA device; --device cpu tries the script"
        raise click.ClickException(msg)
    rows = []
    for name in networks or DEFAULT:
        rows.append(measure(name, place, batch, rounds, engine))
        write_json(rows, path)  # what is measured is not lost when time is up
    heads = list(rows[0])
    cells = [
        tuple("" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v)
              for v in row.values())
        for row in rows
    ]  # fmt: skip
    click.echo(table(heads, cells))
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else str(place)
    click.echo(f"measured on {where}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
