"""What quantizing gains: onnxruntime's time for the integer model against that for the float model.

Run: python -m benchmarks.latency [--json FILE] [NETWORK ...]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from benchmarks.measure import fastest, one_thread, runner, write_json
from benchmarks.networks import NETWORKS, build, inputs
from fxquant import QuantizationSimModel, prepare_model
from fxquant.onnx.lower import lower
from fxquant.onnx.write import write_model
from fxquant.text import table


def measure(name: str, batch: int, rounds: int) -> dict[str, float | str]:
    """One row: milliseconds of float and integer model, one thread, and both files' sizes."""
    model, x = build(name), inputs(name, batch)
    prepared = prepare_model(model, x)
    sim = QuantizationSimModel(prepared, x, quant_scheme="min_max")
    sim.compute_encodings([x])
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        write_model(lower(prepared, (x, {})), folder / "float.onnx")
        sim.export(folder, "int8", x, prove=False)
        calls = {kind: runner(folder / f"{kind}.onnx", x) for kind in ("float", "int8")}
        times = fastest(calls, rounds=rounds)
        sizes = {kind: (folder / f"{kind}.onnx").stat().st_size for kind in calls}
    return {
        "network": name,
        "float_ms": times["float"] * 1e3,
        "int8_ms": times["int8"] * 1e3,
        "speedup": times["float"] / times["int8"],
        "size_ratio": sizes["int8"] / sizes["float"],
    }


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(1))
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(networks: tuple[str, ...], batch: int, rounds: int, path: str | None) -> None:
    """Float and integer latency in onnxruntime, one thread."""
    one_thread()
    rows = [measure(name, batch, rounds) for name in networks or NETWORKS]
    heads = ("network", "float ms", "int8 ms", "float/int8", "file size int8/float")
    cells = [
        (
            r["network"],
            f"{r['float_ms']:.2f}",
            f"{r['int8_ms']:.2f}",
            f"{r['speedup']:.2f}",
            f"{r['size_ratio']:.2f}",
        )
        for r in rows
    ]
    click.echo(table(heads, cells))
    write_json(rows, path)


if __name__ == "__main__":
    main()
