"""What each technique of `fxquant.quantize` gives alone, what all of them give, and what they cost.

Run: python -m benchmarks.techniques [--json FILE] [--folder FOLDER] [--only NAMES] [NETWORK ...]
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass

import click

from benchmarks.measure import one_thread, write_json
from benchmarks.ptq import Data, data_of, decibels, logits
from fxquant import quantize
from fxquant.auto.techniques import TECHNIQUES
from fxquant.io.text_tables import table
from fxquant.models.digits import RECIPES
from fxquant.models.training import trained
from fxquant.onnx.ort.cpu import this_cpu

DEFAULT = ("resnet18", "mobilenet_v2", "vit")
#: bits of weights and activations, one grid a channel
CASES = ((8, 8, True), (8, 8, False), (4, 8, True), (4, 8, False), (4, 4, True))
NAMES = ("none", *(row.name for row in TECHNIQUES if not row.last), "auto")


@dataclass(frozen=True)
class Row:
    """One way to quantize one network.

    Attributes:
        network: its name.
        case: bits and grids.
        techniques: what was asked for.
        taken: what was applied.
        db: of the logits against the float model, on the test images.
        top1: on the test images.
        seconds: CPU seconds of all trials.
        forwards: the same in float forward passes of a batch.
    """

    network: str
    case: str
    techniques: str
    taken: tuple[str, ...]
    db: float
    top1: float
    seconds: float
    forwards: float


def measure(name: str, folder: str, case: tuple[int, int, bool], techniques: str) -> Row:
    """Quantize without the test images, and judge by them."""
    model, data = trained(name, RECIPES[name], folder), data_of(name)
    weight, activation, per_channel = case
    with tempfile.TemporaryDirectory() as out:
        found = quantize(
            model, data.calibration, out=out, prove=False, param_bw=weight, output_bw=activation,
            techniques=techniques if techniques in ("auto", "none") else [techniques],
            config={"per_channel": per_channel},
        )  # fmt: skip
    db, top1 = _judged(model, found.sim.model, data)
    kind = f"W{weight}A{activation} {'pc' if per_channel else 'pt'}"
    seconds = found.report.cpu_seconds
    return Row(
        name, kind, techniques, found.techniques, db, top1, seconds, found.report.forwards(seconds)
    )


def _judged(model: object, quantized: object, data: Data) -> tuple[float, float]:
    exact, found = (logits(m, data.test) for m in (model, quantized))  # type: ignore[arg-type]
    return decibels(exact, found), float((found.argmax(1) == data.labels).float().mean())


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--folder", default="trained", show_default=True, help="Where weights are kept.")
@click.option("--only", default=",".join(NAMES), help="Techniques, with commas between them.")
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(networks: tuple[str, ...], folder: str, only: str, path: str | None) -> None:
    """Decibels and top-1 on the test images; 256 calibration images, one thread."""
    one_thread()
    rows = [
        measure(network, folder, case, name)
        for network in networks or DEFAULT
        for case in CASES
        for name in only.split(",")
    ]
    heads = ("network", "grids", "techniques", "dB", "top-1", "CPU s", "forwards", "taken")
    cells = [
        (
            r.network, r.case, r.techniques, f"{r.db:.1f}", f"{r.top1:.2%}", f"{r.seconds:.1f}",
            f"{r.forwards:.0f}", " + ".join(r.taken),
        )
        for r in rows
    ]  # fmt: skip
    click.echo(table(heads, cells))
    click.echo(f"measured on {this_cpu()}")
    write_json([asdict(r) for r in rows], path)


if __name__ == "__main__":
    main()
