"""What comes before a calibrated simulation, in forward passes of the float network.

Preparing takes the network at batch 2. Calibrating takes batches of 8: the first one pays for the
search of all ranges as well, those of the weights among them; further ones are observed only.

Run: python -m benchmarks.calibration [--scheme NAME ...] [--json FILE] [NETWORK ...]
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click
import torch

from benchmarks.measure import one_thread, write_json
from benchmarks.networks import build, inputs
from fxquant import QuantizationSimModel, prepare_model
from fxquant.io.text_tables import table
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.ort.timing import fastest

if TYPE_CHECKING:
    from collections.abc import Callable

NETWORKS = ("resnet18", "mobilenet_v2", "vit_tiny", "bert_6_layers")
SCHEMES = ("tf_enhanced", "mse", "entropy", "percentile", "min_max")
PREPARED, BATCH, FURTHER = 2, 8, 2


@torch.no_grad()
def measure(name: str, schemes: tuple[str, ...], rounds: int) -> list[dict[str, Any]]:
    """A row for each scheme: what preparing and calibrating cost, all in float forward passes."""
    model, few, x = build(name), inputs(name, PREPARED), inputs(name, BATCH)
    calls: dict[str, Callable[[], Any]] = {
        "float few": lambda: model(*few),
        "prepare": lambda: prepare_model(model, few),
        "float": lambda: model(*x),
    }
    for scheme in schemes:
        sim = QuantizationSimModel(model, few, quant_scheme=scheme)
        calls[f"{scheme} 1"] = functools.partial(sim.compute_encodings, [x])
        calls[scheme] = functools.partial(sim.compute_encodings, [x] * (1 + FURTHER))
    times = fastest(calls, rounds=rounds)
    rows = []
    for scheme in schemes:
        first, more = times[f"{scheme} 1"], (times[scheme] - times[f"{scheme} 1"]) / FURTHER
        rows.append(
            {
                "network": name,
                "prepare": times["prepare"] / times["float few"],
                "scheme": scheme,
                "fixed": (first - more) / times["float"],
                "first_batch": first / times["float"],
                "further_batch": more / times["float"],
            }
        )
    return rows


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--scheme", "schemes", multiple=True, help="Only these; several may be given.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(
    networks: tuple[str, ...], schemes: tuple[str, ...], rounds: int, path: str | None
) -> None:
    """Forward passes that preparing and calibrating cost, one thread."""
    one_thread()
    chosen = schemes or SCHEMES
    rows = [r for name in networks or NETWORKS for r in measure(name, chosen, rounds)]
    heads = ("network", "prepare", "scheme", "fixed", "first batch", "further batch")
    numbers = ("fixed", "first_batch", "further_batch")
    cells = [
        (
            r["network"],
            f"{r['prepare']:.1f}",
            r["scheme"],
            *(f"{r[n]:.2f}" for n in numbers),
        )
        for r in rows
    ]
    click.echo(table(heads, cells))
    click.echo(f"measured on {this_cpu()}")
    write_json(rows, path)


if __name__ == "__main__":
    main()
