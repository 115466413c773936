"""What compiling costs: CPU seconds of each step from the network to the ONNX file.

Run: python -m benchmarks.compile_speed [--json FILE] [NETWORK ...]
"""

from __future__ import annotations

import tempfile

import click

from benchmarks.measure import cpu_seconds, one_thread, write_json
from benchmarks.networks import build, inputs
from fxquant import QuantizationSimModel, prepare_model
from fxquant.text import table

DEFAULT = ("resnet18", "mobilenet_v2", "vit_tiny", "bert_6_layers")
STEPS = ("prepare", "simulate", "calibrate", "export", "prove")


def measure(name: str) -> dict[str, float | str]:
    """One row: CPU seconds of every step on a batch of 2; "prove" is what the proof adds."""
    model, x = build(name), inputs(name, 2)
    model(*x)  # torch's own start-up is not counted
    row: dict[str, float | str] = {"network": name}
    row["prepare"], prepared = cpu_seconds(lambda: prepare_model(model, x))
    row["simulate"], sim = cpu_seconds(
        lambda: QuantizationSimModel(prepared, x, quant_scheme="min_max")
    )
    row["calibrate"], _ = cpu_seconds(lambda: sim.compute_encodings([x]))
    with tempfile.TemporaryDirectory() as folder:
        export, _ = cpu_seconds(lambda: sim.export(folder, "a", x, prove=False))
        proven, _ = cpu_seconds(lambda: sim.export(folder, "b", x))
    return row | {"export": export, "prove": proven - export}


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(networks: tuple[str, ...], path: str | None) -> None:
    """CPU seconds from network to ONNX, one thread."""
    one_thread()
    measure("resnet18")  # the first pass through the code loads modules
    rows = [measure(name) for name in networks or DEFAULT]
    cells = [(r["network"], *(f"{r[step]:.2f}" for step in STEPS)) for r in rows]
    click.echo(table(("network", *(f"{step} s" for step in STEPS)), cells))
    write_json(rows, path)


if __name__ == "__main__":
    main()
