"""What compiling costs: CPU seconds of each step from the network to the ONNX file, and memory.

Run: python -m benchmarks.compile_speed [--json FILE] [NETWORK ...]
"""

from __future__ import annotations

import tempfile
from typing import Any

import click

from benchmarks.measure import cpu_seconds, one_thread, peak_bytes, write_json
from benchmarks.networks import LARGE, build, inputs
from fxquant import QuantizationSimModel, prepare_model
from fxquant.io.text_tables import table
from fxquant.onnx.ort.cpu import this_cpu

DEFAULT = ("resnet18", "resnet50", "mobilenet_v2", "vit_tiny", "bert_6_layers", *LARGE)
STEPS = ("prepare", "simulate", "calibrate", "export", "prove")


def measure(name: str) -> dict[str, Any]:
    """One row: CPU seconds of every step on one sample; "prove" is what the proof adds.

    "memory" is the most that the export without proof adds to what the process holds, against the
    bytes of the float parameters.
    """
    model, x = build(name), inputs(name, 1)
    model(*x)  # torch's own start-up is not counted
    size = sum(p.nbytes for p in model.parameters())
    row: dict[str, Any] = {"network": name}
    row["prepare"], prepared = cpu_seconds(lambda: prepare_model(model, x))
    row["simulate"], sim = cpu_seconds(
        lambda: QuantizationSimModel(prepared, x, quant_scheme="min_max")
    )
    row["calibrate"], _ = cpu_seconds(lambda: sim.compute_encodings([x]))
    with tempfile.TemporaryDirectory() as folder:
        peak, (export, _) = peak_bytes(
            lambda: cpu_seconds(lambda: sim.export(folder, "a", x, prove=False))
        )
        proven, _ = cpu_seconds(lambda: sim.export(folder, "b", x))
    memory = None if peak is None else peak / size
    return row | {"export": export, "prove": proven - export, "memory": memory}


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(networks: tuple[str, ...], path: str | None) -> None:
    """CPU seconds from network to ONNX, one thread."""
    one_thread()
    measure("resnet18")  # the first pass through the code loads modules
    rows = [measure(name) for name in networks or DEFAULT]
    cells = [
        (r["network"], *(f"{r[step]:.2f}" for step in STEPS),
         "" if r["memory"] is None else f"{r['memory']:.2f}")
        for r in rows
    ]  # fmt: skip
    heads = ("network", *(f"{step} s" for step in STEPS), "export memory / model")
    click.echo(table(heads, cells))
    click.echo(f"measured on {this_cpu()}")
    write_json(rows, path)


if __name__ == "__main__":
    main()
