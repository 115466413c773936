"""What training in simulation gains over the engine on the digits networks, and what a step costs.

Training begins with the engine's result, on ranges chosen by their cost, and learns ranges; the
float network is the teacher. Three epochs, seeded, one thread. The file of what was trained runs
on the test images, with exact kernels: its labels are to be those of the simulation. The time of a
step is measured against a step of the float network, in turns; for networks of full size and for
memory see `benchmarks/training_steps.py`.

Run: python -m benchmarks.qat [--json FILE] [--folder FOLDER] [--case W4A4] [NETWORK ...]
"""

from __future__ import annotations

import copy
import itertools
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import one_thread, write_json
from benchmarks.ptq import DEFAULT, data_of, decibels, logits
from fxquant import QuantizationSimModel, qat
from fxquant.io.text_tables import table
from fxquant.models.digits import RECIPES
from fxquant.models.training import digits, trained
from fxquant.onnx.lowering.unsigned_products import exact_model
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.ort.timing import fastest
from fxquant.onnx.session import Level, open_session, packed
from fxquant.ptq import choose_activation_ranges, reconstruct

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from benchmarks.ptq import Data

SCHEME = "training_range_learning_with_tf_init"
#: bits of weights and activations -> points of top-1 that may be lost against float
CASES = {"W4A4": (4, 4, 0.5), "W3A3": (3, 3, 1.5), "W2A4": (2, 4, 3.0)}
LEAST_DB = 1.0  # decibels below the engine's that training may end at
EPOCHS, BATCH, SEED = 3, 32, 0
#: the recipe of docs/training.md: learning rates by the bits of activations, chosen on training
#: images held out, with float networks that have not seen them; that of ranges is in widths
RATES, RANGE_RATE = {4: 5e-4, 3: 1e-3}, 2e-4
LABELS = 2.0  # weight of the labels in the loss, relative to the distance to the teacher


@dataclass(frozen=True)
class Row:
    """One network on one kind of grid; dB are those of the logits against the float model."""

    network: str
    case: str
    float_top1: float
    engine_top1: float
    top1: float
    lost: float
    allowed: float
    engine_db: float
    db: float
    step: float | None
    seconds: float
    other_labels: int | None

    @property
    def reached(self) -> bool:
        """Whether accuracy, decibels and the file are what is asked for."""
        near = self.lost <= self.allowed + 1e-9 and self.db >= self.engine_db - LEAST_DB
        return near and not self.other_labels


def engine_result(
    name: str, model: nn.Module, data: Data, bits: tuple[int, int]
) -> QuantizationSimModel:
    """The simulation that training starts from."""
    weight, activation = bits
    sim = QuantizationSimModel(model, data.calibration[0], SCHEME, activation, weight)
    sim.compute_encodings(data.calibration)
    choose_activation_ranges(sim, data.calibration)
    reconstruct(sim, data.calibration)
    return sim


def train(name: str, sim: QuantizationSimModel, model: nn.Module, rate: float) -> None:
    """Three epochs with the float network as the teacher.

    Images are not distorted: distorted ones are smoother, and a student that is near its teacher
    gives up decibels, and with them labels, on the others for them.
    """
    recipe, (data, _) = RECIPES[name], digits()
    generator = torch.Generator().manual_seed(SEED)
    groups = qat.parameter_groups(sim.model, rate, RANGE_RATE)
    optimizer = torch.optim.Adam(groups)
    count = EPOCHS * math.ceil(len(data.labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [g["lr"] for g in groups], total_steps=count, pct_start=0.1
    )
    distiller = qat.Distiller(sim.model, model, squared=True)
    sim.model.train()
    for _ in range(EPOCHS):
        for index in torch.randperm(len(data.labels), generator=generator).split(BATCH):
            output, loss = distiller(*recipe.encode(data.images[index]))
            loss = loss + LABELS * loss.detach() * F.cross_entropy(output, data.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    sim.model.eval()


def other_labels(sim: QuantizationSimModel, data: Data, found: Tensor) -> int:
    """Test images to which the exported file, with exact kernels, gives another label."""
    with tempfile.TemporaryDirectory() as folder:
        sim.export(folder, "trained", data.calibration[0])
        path = Path(folder) / "trained.onnx"
        if this_cpu().exact:
            session = open_session(path, Level.ALL)
        else:
            with packed(exact_model(path)) as source:
                session = open_session(source, Level.ALL)
        run = [next(iter(session.run({session.inputs[0]: x.numpy()}).values())) for x in data.test]
    labels = torch.cat([torch.from_numpy(y) for y in run]).argmax(1)
    return int((labels != found.argmax(1)).sum())


def step_ratio(name: str, sim: QuantizationSimModel, model: nn.Module, rounds: int) -> float:
    """CPU time of a step of the simulation against one of the float network."""
    (image,), labels = next(iter(digits()[0].batches(RECIPES[name].encode, BATCH)))
    calls = {
        kind: _step(copy.deepcopy(net).train(), image, labels)
        for kind, net in (("float", model), ("sim", sim.model))
    }
    times = fastest(calls, rounds=rounds)
    return times["sim"] / times["float"]


def _step(net: nn.Module, image: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(net.parameters(), 0.0)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(image), labels).backward()
        optimizer.step()

    return step


def measure(name: str, folder: str, case: str, rounds: int, files: bool) -> Row:
    """One row."""
    weight, activation, allowed = CASES[case]
    model, data = trained(name, RECIPES[name], folder), data_of(name)
    exact = logits(model, data.test)

    def top1(found: Tensor) -> float:
        return float((found.argmax(1) == data.labels).double().mean())

    sim = engine_result(name, model, data, (weight, activation))
    before = logits(sim.model, data.test)
    step = step_ratio(name, sim, model, rounds) if rounds else None
    begin = time.process_time()
    train(name, sim, model, RATES[activation])
    seconds = time.process_time() - begin
    after = logits(sim.model, data.test)
    return Row(
        name, case, top1(exact), top1(before), top1(after), 100 * (top1(exact) - top1(after)),
        allowed, decibels(exact, before), decibels(exact, after), step, seconds,
        other_labels(sim, data, after) if files else None,
    )  # fmt: skip


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--folder", default="trained", show_default=True, help="Where weights are kept.")
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)), help="Grids.")
@click.option("--rounds", default=5, show_default=True, help="Of measuring a step; 0: none.")
@click.option("--files/--no-files", default=True, show_default=True, help="Export and run.")
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(
    networks: tuple[str, ...], folder: str, cases: tuple[str, ...], rounds: int, files: bool,
    path: str | None,
) -> None:  # fmt: skip
    """Top-1 and decibels of the logits after three epochs from the engine's result; one thread."""
    one_thread()
    rows: list[Row] = []
    for name, case in itertools.product(networks or DEFAULT, cases or CASES):
        rows.append(measure(name, folder, case, rounds, files))
        write_json([asdict(r) for r in rows], path)  # a run takes long
    heads = ("network", "grids", "top-1 float", "engine", "trained", "lost", "allowed",
             "dB engine", "dB trained", "step/float", "CPU s", "file apart", "reached")  # fmt: skip
    cells = [
        (
            r.network, r.case, f"{r.float_top1:.2%}", f"{r.engine_top1:.2%}", f"{r.top1:.2%}",
            f"{r.lost:.2f}", f"{r.allowed}", f"{r.engine_db:.1f}", f"{r.db:.1f}",
            "" if r.step is None else f"{r.step:.2f}", f"{r.seconds:.0f}",
            "" if r.other_labels is None else str(r.other_labels),
            "yes" if r.reached else "no",
        )
        for r in rows
    ]  # fmt: skip
    click.echo(table(heads, cells))
    click.echo(f"measured on {this_cpu()}")


if __name__ == "__main__":
    main()
