"""What simulating costs: the simulated forward pass and calibration against the float forward pass.

Run: python -m benchmarks.sim_speed [--json FILE] [NETWORK ...]
"""

from __future__ import annotations

import click
import torch

from benchmarks.measure import one_thread, write_json
from benchmarks.networks import build, inputs
from fxquant import QuantizationSimModel
from fxquant.io.text_tables import table
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.ort.timing import fastest

DEFAULT = ("resnet18", "mobilenet_v2", "vit_tiny", "bert_6_layers")
BATCH, BATCHES = 8, 4


@torch.no_grad()
def measure(name: str, rounds: int) -> dict[str, float | str]:
    """One row: seconds of a float and of a simulated batch, and of calibrating by min and max."""
    model, x = build(name), inputs(name, BATCH)
    sim = QuantizationSimModel(model, x, quant_scheme="min_max")
    sim.compute_encodings([x])
    times = fastest({"float": lambda: model(*x), "sim": lambda: sim.model(*x)}, rounds=rounds)
    again = fastest(
        {
            "float": lambda: [model(*x) for _ in range(BATCHES)],
            "calibrate": lambda: sim.compute_encodings([x] * BATCHES),
        },
        rounds=max(1, rounds // 3),
    )
    return {
        "network": name,
        "float_ms": times["float"] * 1e3,
        "sim_ms": times["sim"] * 1e3,
        "sim_ratio": times["sim"] / times["float"],
        "calibrate_ratio": again["calibrate"] / again["float"],
    }


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1))
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(networks: tuple[str, ...], rounds: int, path: str | None) -> None:
    """Simulated / float time at batch 8, one thread."""
    one_thread()
    rows = [measure(name, rounds) for name in networks or DEFAULT]
    heads = ("network", "float ms", "simulated ms", "simulated/float", "calibrating/float")
    cells = [
        (
            r["network"],
            f"{r['float_ms']:.1f}",
            f"{r['sim_ms']:.1f}",
            f"{r['sim_ratio']:.2f}",
            f"{r['calibrate_ratio']:.2f}",
        )
        for r in rows
    ]
    click.echo(table(heads, cells))
    click.echo(f"measured on {this_cpu()}")
    write_json(rows, path)


if __name__ == "__main__":
    main()
