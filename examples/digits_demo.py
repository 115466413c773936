"""Trains networks on scikit-learn's digits, quantizes, exports and proves them, prints a table.

Run: python -m examples.digits_demo [--out DIR] [NETWORK ...]

For each network it writes the float and the integer ONNX file with its encodings and report, and
for all of them demo.json and demo.md. Trained weights are kept in DIR/weights.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch

from benchmarks.measure import one_thread, runner
from fxquant import QuantizationSimModel, prepare_model
from fxquant.io.text_tables import table
from fxquant.models import digits
from fxquant.models.training import digits as load_digits
from fxquant.models.training import trained
from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.io.writer import write_model
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.lowering.unsigned_products import exact_model
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.ort.timing import fastest
from fxquant.onnx.session import Level, open_session, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fxquant.models.training import Recipe

DEFAULT = ("resnet18", "mobilenet_v2", "vit", "bert")


@dataclass(frozen=True)
class Row:
    """What the demo finds out about one network.

    Attributes:
        network: its name.
        parameters: number of its weights.
        float_accuracy: share of the test images that the trained network classifies rightly.
        sim_accuracy: the same of the simulation.
        runtime_accuracy: the same of the integer model in onnxruntime, in exact kernels.
        saturated_accuracy: the same of the file on x86 CPUs without VNNI, whose kernels saturate:
            run where this CPU is one, else computed by the integer executor.
        label_agreement: share of the test images that simulation and onnxruntime label alike.
        size_ratio: size of the integer file divided by that of the float file.
        float_ms: time of one image in onnxruntime on one thread, float.
        int8_ms: the same, integer.
        integer_operators: operators in integer kernels.
        operators: all operators.
        max_steps: largest difference of a quantized tensor between simulation and onnxruntime,
            each operator fed with the simulation's inputs, in steps of its grid.
        kernels: what the report says of default kernels that are not exact.
    """

    network: str
    parameters: int
    float_accuracy: float
    sim_accuracy: float
    runtime_accuracy: float
    saturated_accuracy: float
    label_agreement: float
    size_ratio: float
    float_ms: float
    int8_ms: float
    integer_operators: int
    operators: int
    max_steps: int
    kernels: tuple[str, ...]


HEADS = (
    "network",
    "accuracy float",
    "simulated",
    "onnxruntime",
    "without VNNI",
    "labels agree",
    "size int8/float",
    "time int8/float",
    "integer kernels",
)


def run(name: str, out: Path, say: Callable[[str], None]) -> Row:
    """Train (or load), quantize, export, prove and measure one network."""
    recipe = digits.RECIPES[name]
    say(f"{name}: training")
    model = trained(name, recipe, out / "weights", progress=lambda text: say(f"  {text}"))
    batches = list(digits.calibration(recipe.encode))
    example = batches[0]
    say(f"{name}: preparing, placing quantizers, calibrating")
    prepared = prepare_model(model, example)
    sim = QuantizationSimModel(prepared, example)
    sim.compute_encodings(batches)
    say(f"{name}: exporting and proving")
    write_model(lower(prepared, (example, {})), out / f"{name}_float.onnx")
    report = sim.export(out, name, example)
    say(f"{name}: measuring")
    sizes = [(out / f"{name}{kind}.onnx").stat().st_size for kind in ("", "_float")]
    one = tuple(x[:1] for x in example)
    times = fastest(
        {
            "int8": runner(out / f"{name}.onnx", one),
            "float": runner(out / f"{name}_float.onnx", one),
        }
    )
    truth, labels = all_labels(recipe, model, sim, out / f"{name}.onnx")
    return Row(
        network=name,
        parameters=sum(p.numel() for p in model.parameters()),
        float_accuracy=agreement(labels["float"], truth),
        sim_accuracy=agreement(labels["sim"], truth),
        runtime_accuracy=agreement(labels["runtime"], truth),
        saturated_accuracy=agreement(labels["saturated"], truth),
        label_agreement=agreement(labels["sim"], labels["runtime"]),
        size_ratio=sizes[0] / sizes[1],
        float_ms=times["float"] * 1e3,
        int8_ms=times["int8"] * 1e3,
        integer_operators=len(report.integer_operators),
        operators=len(report.operators),
        max_steps=report.max_steps,
        kernels=tuple(map(str, report.kernels)),
    )


@torch.no_grad()
def all_labels(
    recipe: Recipe, model: torch.nn.Module, sim: QuantizationSimModel, path: Path
) -> tuple[Any, dict[str, Any]]:
    """The true labels of all test images, and those of network, simulation and onnxruntime."""
    _, test = load_digits()
    with packed(exact_model(path)) as source:
        session = open_session(source, Level.ALL)
    exact = this_cpu().exact
    saturated = IntegerModel(path, cpu="avx2") if exact else open_session(path, Level.ALL)
    found: dict[str, list[Any]] = {"float": [], "sim": [], "runtime": [], "saturated": []}
    for inputs, _ in test.batches(recipe.encode):
        feeds = dict(zip(session.inputs, (x.numpy() for x in inputs), strict=True))
        found["saturated"].append(saturated.run(feeds)[session.outputs[0]])
        found["float"].append(model(*inputs).numpy())
        found["sim"].append(sim.model(*inputs).numpy())
        found["runtime"].append(session.run(feeds)[session.outputs[0]])
    labels = {kind: np.concatenate(parts).argmax(-1) for kind, parts in found.items()}
    return test.labels.numpy(), labels


def agreement(a: Any, b: Any) -> float:
    """Share of equal labels."""
    return float((a == b).mean())


def cells(row: Row) -> tuple[str, ...]:
    """A row as texts, in the order of `HEADS`."""
    return (
        row.network,
        f"{row.float_accuracy:.1%}",
        f"{row.sim_accuracy:.1%}",
        f"{row.runtime_accuracy:.1%}",
        f"{row.saturated_accuracy:.1%}",
        f"{row.label_agreement:.1%}",
        f"{row.size_ratio:.2f}",
        f"{row.int8_ms / row.float_ms:.2f}",
        f"{row.integer_operators} of {row.operators}",
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table for a README."""
    lines = [HEADS, ["---"] * len(HEADS), *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--out", default="out", show_default=True, metavar="DIR", help="Where files go.")
def main(networks: tuple[str, ...], out: str) -> None:
    """Quantize digit-sized networks and compare float, simulation and onnxruntime."""
    logging.basicConfig(level=logging.WARNING)
    one_thread()  # the same sums, hence the same weights, on every machine of a kind
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    say = lambda text: click.echo(text, err=True)  # noqa: E731 - the only use of a name
    rows = [run(name, folder, say) for name in networks or DEFAULT]
    (folder / "demo.md").write_text(markdown(rows), encoding="utf-8")
    plain = [dataclasses.asdict(row) for row in rows]
    (folder / "demo.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    click.echo(table(HEADS, [cells(row) for row in rows]))
    steps = max(row.max_steps for row in rows)
    for row in rows:
        for text in row.kernels:
            click.echo(f"{row.network}: {text}")
    click.echo(f"\nmeasured on {this_cpu()}")
    click.echo(f"largest difference of any quantized tensor to onnxruntime: {steps} step(s)")
    click.echo(f"files: {folder}/")


if __name__ == "__main__":
    main()
