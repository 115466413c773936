"""What reconstruction gains over rounding to nearest on the digits networks, and what it costs.

The ceiling is what quantized activations leave with float weights. "ranges" says that
`choose_activation_ranges` came before the engine. Beside it stands a plain AdaRound: `--adaround`
runs it over whole networks, `benchmarks.ptq_layers` layer by layer. Networks whose channels differ
by orders of magnitude are for cross-layer equalization (CLE).

Run: python -m benchmarks.ptq [--json FILE] [--folder FOLDER] [--adaround ITERATIONS] [NETWORK ...]
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import click
import torch
from torch import Tensor, nn

from benchmarks.measure import cpu_seconds, one_thread, peak_bytes, write_json
from fxquant import QuantizationSimModel, equalize_model, prepare_model
from fxquant.io.text_tables import table
from fxquant.models.digits import RECIPES
from fxquant.models.mobilenet import InvertedResidual, MobileNetV2
from fxquant.models.training import digits, trained
from fxquant.nn import QuantizationMixin
from fxquant.nn.modes import quantization_off
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.ptq import (
    ReconstructionOptions,
    SolverOptions,
    choose_activation_ranges,
    reconstruct,
)
from fxquant.ptq.solving.gradient_rounding import AdaroundOptions

DEFAULT = ("resnet18", "mobilenet_v2", "vit")
#: bits of weights, bits of activations, one grid a channel
CASES = ((4, 8, True), (4, 8, False), (3, 8, True), (2, 8, True), (4, 4, True), (8, 8, True))
#: a case whose activations' ranges are chosen by what the outputs lose, too
RANGES_CASE = (4, 4, True)
#: a network whose channels are rescaled, and the cases for it: bits of weights, CLE
RESCALED = "mobilenet_v2"
RESCALED_CASES = ((8, False), (8, True), (4, False), (4, True))
_DECADES = 1.5  # channels are rescaled by ten to the power of up to so much
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
    ceiling_db: float
    worst_layer: float
    forwards: float
    seconds: float
    peak_mib: float | None
    adaround_db: float | None = None
    adaround_seconds: float | None = None

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        adaround = ("", "")
        if self.adaround_db is not None and self.adaround_seconds is not None:
            adaround = f"{self.adaround_db:.1f}", f"{self.adaround_seconds:.0f}"
        return (
            self.network, self.case, f"{self.float_top1:.2%}", f"{self.nearest_top1:.2%}",
            f"{self.top1:.2%}", f"{self.nearest_db:.1f}", f"{self.db:.1f}",
            f"{self.ceiling_db:.1f}", f"{self.worst_layer:.2f}", f"{self.forwards:.0f}",
            f"{self.seconds:.1f}", "" if self.peak_mib is None else f"{self.peak_mib:.0f}",
            *adaround,
        )  # fmt: skip


HEADS = (
    "network", "grids", "top-1 float", "nearest", "engine", "dB nearest", "engine", "ceiling",
    "worst layer", "forwards", "CPU s", "peak MiB", "dB AdaRound", "CPU s",
)  # fmt: skip


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


def ceiling(sim: QuantizationSimModel, batches: list[Tensor]) -> Tensor:
    """Outputs with the activations on their grids, and float weights."""
    modules = (m for m in sim.model.modules() if isinstance(m, QuantizationMixin))
    with quantization_off(nn.ModuleList(m.param_quantizers for m in modules)):
        return logits(sim.model, batches)


def measure(
    name: str, model: nn.Module, exact: Tensor, data: Data, case: tuple[int, int, bool],
    iterations: int = 0, *, ranges: bool = False,
) -> Row:  # fmt: skip
    """Nearest rounding, the engine and, if iterations are given, AdaRound.

    Args:
        name: what the row is called.
        model: a float model.
        exact: its logits on the test images; those of the same function with other weights.
        data: the images.
        case: bits of weights, bits of activations, one grid a channel.
        iterations: those of AdaRound.
        ranges: choose the ranges of activations before the engine; its costs are counted.
    """

    def judged(sim: QuantizationSimModel) -> tuple[float, float]:
        found = logits(sim.model, data.test)
        return float((found.argmax(1) == data.labels).float().mean()), decibels(exact, found)

    sim = simulate(model, data, case)
    nearest, seconds = judged(sim), 0.0
    if ranges:
        seconds = choose_activation_ranges(sim, data.calibration).seconds
    best = decibels(exact, ceiling(sim, data.test))
    peak, report = peak_bytes(lambda: reconstruct(sim, data.calibration))
    report.seconds += seconds
    ratios = [r.loss_after / r.loss_before for r in report.layers if r.loss_before > 0]
    other: dict[str, Any] = {}
    if iterations:
        plain = simulate(model, data, case)
        solver = SolverOptions("adaround", search_scale=False, adaround=AdaroundOptions(iterations))
        options = ReconstructionOptions(solver, float_target=False)
        longer, _ = cpu_seconds(lambda: reconstruct(plain, data.calibration, options))
        other = {"adaround_seconds": longer, "adaround_db": judged(plain)[1]}
    weight, activation, per_channel = case
    return Row(
        name, f"W{weight}A{activation} {'pc' if per_channel else 'pt'}{', ranges' * ranges}",
        float((exact.argmax(1) == data.labels).float().mean()), *nearest, *judged(sim), best,
        max(ratios), report.forward_equivalents(), report.seconds,
        None if peak is None else peak / 2**20, **other,
    )  # fmt: skip


@torch.no_grad()
def rescale(model: MobileNetV2) -> None:
    """Scale channels between the convolutions of every block by 10^U(-1.5, 1.5), and back.

    ReLU stands in the place of ReLU6, with which the function would be another one.
    """
    generator = torch.Generator().manual_seed(0)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, nn.ReLU())
    for block in model.modules():
        if not isinstance(block, InvertedResidual):
            continue
        inner = [m for m in block.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))][:-1]
        for norm, conv in zip(inner[1:-1:2], inner[2::2], strict=True):
            channels = len(next(norm.parameters()))
            decades = torch.rand(channels, generator=generator) * 2 - 1
            factors = 10 ** (decades * _DECADES)
            for scaled in norm.parameters():
                scaled.mul_(factors)
            weight = next(conv.parameters())
            depthwise = weight.shape[1] == 1
            weight.div_(factors.reshape((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)))


def rows_of(name: str, folder: str, iterations: int) -> list[Row]:
    """All cases of one network."""
    model, data = trained(name, RECIPES[name], folder), data_of(name)
    exact = logits(model, data.test)
    rows = [measure(name, model, exact, data, case, iterations) for case in CASES]
    return [*rows, measure(name, model, exact, data, RANGES_CASE, ranges=True)]


def rescaled_rows(folder: str) -> list[Row]:
    """A network with rescaled channels, per tensor, without and with equalization."""
    model, data = trained(RESCALED, RECIPES[RESCALED], folder), data_of(RESCALED)
    rescale(cast("MobileNetV2", model))
    exact, found = logits(model, data.test), []
    for bits, equalized in RESCALED_CASES:
        prepared = prepare_model(model, data.calibration[0])
        if equalized:
            equalize_model(prepared, dummy_input=data.calibration[0])
        name = f"{RESCALED} rescaled{', CLE' if equalized else ''}"
        found.append(measure(name, prepared, exact, data, (bits, 8, False)))
    return found


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--folder", default="trained", show_default=True, help="Where weights are kept.")
@click.option("--adaround", default=0, help="Iterations of AdaRound, for comparison; 0: none.")
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(networks: tuple[str, ...], folder: str, adaround: int, path: str | None) -> None:
    """Decibels of the logits, top-1 and costs; 256 calibration images, one thread."""
    one_thread()
    rows = [row for name in networks or DEFAULT for row in rows_of(name, folder, adaround)]
    if not networks or RESCALED in networks:
        rows += rescaled_rows(folder)
    click.echo(table(HEADS, [row.cells() for row in rows]))
    click.echo(f"measured on {this_cpu()}")
    write_json([asdict(r) for r in rows], path)


if __name__ == "__main__":
    main()
