"""What reconstruction gains over rounding to nearest on the digits networks, and what it costs.

Beside it stands a plain AdaRound, layer by layer on the same statistics without a scale search:
what it reaches in how many iterations, and how long it takes.

Run: python -m benchmarks.ptq [--json FILE] [--folder FOLDER] [--adaround ITERATIONS] [NETWORK ...]
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click
import torch
from torch import Tensor

from benchmarks.measure import one_thread, write_json
from fxquant import QuantizationSimModel
from fxquant.io.text_tables import table
from fxquant.models.digits import RECIPES
from fxquant.models.training import digits, trained
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.ptq import ReconstructionOptions, SolverOptions, reconstruct
from fxquant.ptq.solving.gradient_rounding import AdaroundOptions

if TYPE_CHECKING:
    from torch import nn

DEFAULT = ("resnet18", "mobilenet_v2", "vit")
#: bits of weights, bits of activations, one grid a channel
CASES = ((4, 8, True), (4, 8, False), (3, 8, True), (2, 8, True), (4, 4, True), (8, 8, True))
IMAGES, BATCH = 256, 64


@dataclass(frozen=True)
class Data:
    """Calibration batches, test batches and the labels of these."""

    calibration: list[Tensor]
    test: list[Tensor]
    labels: Tensor


@dataclass(frozen=True)
class Row:
    """One network on one kind of grid; dB are those of the logits against the float model."""

    network: str
    case: str
    float_top1: float
    nearest_top1: float
    nearest_db: float
    top1: float
    db: float
    worst_layer: float
    forwards: float
    seconds: float
    adaround_db: float | None = None
    adaround_seconds: float | None = None


def data_of(name: str) -> Data:
    """Images of all writers of the training set, in an order of their own, and the test set."""
    encode = RECIPES[name].encode
    train, test = digits()
    places = torch.linspace(0, len(train.labels) - 1, IMAGES).long()
    places = places[torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))]
    images = encode(train.images[places])[0]
    batches = [inputs[0] for inputs, _ in test.batches(encode)]
    return Data(list(images.split(BATCH)), batches, test.labels)


@torch.no_grad()
def logits(model: nn.Module, batches: list[Tensor]) -> Tensor:
    """Outputs of a model as plain tensors."""
    return torch.cat([model(x).as_subclass(Tensor) for x in batches])


def decibels(exact: Tensor, found: Tensor) -> float:
    """Signal to quantization noise."""
    return float(10 * torch.log10(exact.square().sum() / (exact - found).square().sum()))


def simulate(model: nn.Module, data: Data, case: tuple[int, int, bool]) -> QuantizationSimModel:
    """A calibrated simulation."""
    weight, activation, per_channel = case
    config = {"per_channel": per_channel}
    sim = QuantizationSimModel(
        model, data.calibration[0], "min_max", activation, weight, config=config
    )
    sim.compute_encodings(data.calibration)
    return sim


def measure(name: str, folder: str, case: tuple[int, int, bool], iterations: int) -> Row:
    """Nearest rounding, the engine and, if iterations are given, AdaRound."""
    model, data = trained(name, RECIPES[name], folder), data_of(name)
    exact = logits(model, data.test)

    def judged(sim: QuantizationSimModel) -> tuple[float, float]:
        found = logits(sim.model, data.test)
        return float((found.argmax(1) == data.labels).float().mean()), decibels(exact, found)

    sim = simulate(model, data, case)
    nearest = judged(sim)
    report = reconstruct(sim, data.calibration)
    ratios = [r.loss_after / r.loss_before for r in report.layers if r.loss_before > 0]
    other: dict[str, Any] = {}
    if iterations:
        plain = simulate(model, data, case)
        begin = time.process_time()
        solver = SolverOptions("adaround", search_scale=False, adaround=AdaroundOptions(iterations))
        reconstruct(plain, data.calibration, ReconstructionOptions(solver, float_target=False))
        other = {"adaround_seconds": time.process_time() - begin, "adaround_db": judged(plain)[1]}
    weight, activation, per_channel = case
    return Row(
        name, f"W{weight}A{activation} {'pc' if per_channel else 'pt'}",
        float((exact.argmax(1) == data.labels).float().mean()), *nearest, *judged(sim),
        max(ratios), report.forward_equivalents(), report.seconds, **other,
    )  # fmt: skip


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--folder", default="trained", show_default=True, help="Where weights are kept.")
@click.option("--adaround", default=0, help="Iterations of AdaRound, for comparison; 0: none.")
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(networks: tuple[str, ...], folder: str, adaround: int, path: str | None) -> None:
    """Decibels of the logits, top-1 and costs; 256 calibration images, one thread."""
    one_thread()
    rows = [measure(n, folder, case, adaround) for n in networks or DEFAULT for case in CASES]
    heads = ("network", "grids", "top-1 float", "nearest", "engine", "dB nearest", "dB engine",
             "worst layer", "forwards", "CPU s", "dB AdaRound", "CPU s")  # fmt: skip
    cells = [
        (
            r.network, r.case, f"{r.float_top1:.2%}", f"{r.nearest_top1:.2%}", f"{r.top1:.2%}",
            f"{r.nearest_db:.1f}", f"{r.db:.1f}", f"{r.worst_layer:.2f}", f"{r.forwards:.0f}",
            f"{r.seconds:.1f}", "" if r.adaround_db is None else f"{r.adaround_db:.1f}",
            "" if r.adaround_seconds is None else f"{r.adaround_seconds:.0f}",
        )
        for r in rows
    ]  # fmt: skip
    click.echo(table(heads, cells))
    click.echo(f"measured on {this_cpu()}")
    write_json([asdict(r) for r in rows], path)


if __name__ == "__main__":
    main()
