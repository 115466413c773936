"""What `fxquant.quantize` tries on the digits networks, what it gains and what it costs.

Run: python -m benchmarks.techniques [--json FILE] [--folder FOLDER] [NETWORK ...]
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import click

from benchmarks.measure import one_thread, write_json
from benchmarks.ptq import Data, data_of, decibels, logits
from fxquant import quantize
from fxquant.models.digits import RECIPES
from fxquant.models.training import trained
from fxquant.onnx.ort.cpu import this_cpu

if TYPE_CHECKING:
    from torch import nn

DEFAULT = ("resnet18", "mobilenet_v2", "vit")
#: bits of weights and activations, one grid a channel
CASES = ((8, 8, False), (4, 8, True), (4, 4, True))


def measure(name: str, folder: str, case: tuple[int, int, bool]) -> dict[str, Any]:
    """Search without the test images, and judge the result by them."""
    model, data = trained(name, RECIPES[name], folder), data_of(name)
    weight, activation, per_channel = case
    with tempfile.TemporaryDirectory() as out:
        found = quantize(
            model, data.calibration, out=out, prove=False, param_bw=weight, output_bw=activation,
            config={"per_channel": per_channel},
        )  # fmt: skip
    exact = judged(model, model, data)[1]
    db, top1 = judged(model, found.sim.model, data)
    kind = f"W{weight}A{activation} {'per channel' if per_channel else 'per tensor'}"
    click.echo(f"\n{name} {kind}\n{found.report}")
    click.echo(f"test images: {db:.1f} dB, top-1 {top1:.2%}; the float model has {exact:.2%}")
    test = {"db": db, "top1": top1, "float_top1": exact}
    return {"network": name, "grids": kind, **test, "search": found.report.to_dict()}


def judged(model: nn.Module, quantized: nn.Module, data: Data) -> tuple[float, float]:
    """Decibels against the float model and top-1, on the test images."""
    exact, found = (logits(m, data.test) for m in (model, quantized))
    return decibels(exact, found), float((found.argmax(1) == data.labels).float().mean())


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--folder", default="trained", show_default=True, help="Where weights are kept.")
@click.option("--json", "path", metavar="FILE", help="Write the results here too.")
def main(networks: tuple[str, ...], folder: str, path: str | None) -> None:
    """The reports of searches; 256 calibration images, one thread."""
    one_thread()
    found = [measure(name, folder, case) for name in networks or DEFAULT for case in CASES]
    click.echo(f"measured on {this_cpu()}")
    write_json(found, path)


if __name__ == "__main__":
    main()
