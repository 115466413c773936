"""What compiling costs: CPU seconds of each step from the network to the ONNX file, and memory.

Run: python -m benchmarks.compile_speed [--json FILE] [--nodes N]... [NETWORK ...]

With `--nodes`, networks of so many nodes are compiled as well: what a node costs may not grow with
their number.
"""

from __future__ import annotations

import tempfile
from typing import Any

import click
import torch
from torch import Tensor, nn

from benchmarks.measure import cpu_seconds, one_thread, peak_bytes, write_json
from benchmarks.networks import LARGE, build, inputs
from fxquant import QuantizationSimModel, prepare_model
from fxquant.io.text_tables import table
from fxquant.onnx.ort.cpu import this_cpu

DEFAULT = ("resnet18", "resnet50", "mobilenet_v2", "vit_tiny", "bert_6_layers", *LARGE)
STEPS = ("prepare", "simulate", "calibrate", "print", "export", "prove")


class Block(nn.Module):
    """Four nodes: a linear layer, its activation, a sum, a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc, self.act, self.norm = nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """One block of a residual network."""
        return self.norm(x + self.act(self.fc(x)))  # type: ignore[no-any-return]


def deep(nodes: int) -> nn.Module:
    """A network of so many nodes that compute next to nothing."""
    torch.manual_seed(0)
    return nn.Sequential(*(Block(8) for _ in range(nodes // 4))).eval()


def forwards(name: str, rounds: int = 5) -> float:
    """CPU seconds of `prepare_model` on two samples over those of one run on them."""
    model, x = build(name), inputs(name, 2)
    with torch.no_grad():
        model(*x)
        both = [
            (cpu_seconds(lambda: prepare_model(model, x))[0], cpu_seconds(lambda: model(*x))[0])
            for _ in range(rounds)
        ]
    return min(prepared for prepared, _ in both) / min(ran for _, ran in both)


def measure(name: str, model: nn.Module, x: tuple[Tensor, ...]) -> dict[str, Any]:
    """One row: CPU seconds of every step; "prove" is what the proof adds.

    "memory" is the most that the export without proof adds to what the process holds, against the
    bytes of the float parameters.
    """
    with torch.no_grad():
        model(*x)  # torch's own start-up is not counted
    size = sum(p.nbytes for p in model.parameters())
    row: dict[str, Any] = {"network": name}
    row["prepare"], prepared = cpu_seconds(lambda: prepare_model(model, x))
    row["simulate"], sim = cpu_seconds(
        lambda: QuantizationSimModel(prepared, x, quant_scheme="min_max")
    )
    row["calibrate"], _ = cpu_seconds(lambda: sim.compute_encodings([x]))
    row["print"], _ = cpu_seconds(lambda: str(sim))
    with tempfile.TemporaryDirectory() as folder:
        peak, (export, _) = peak_bytes(
            lambda: cpu_seconds(lambda: sim.export(folder, "a", x, prove=False))
        )
        proven, _ = cpu_seconds(lambda: sim.export(folder, "b", x))
    memory = None if peak is None else peak / size
    return row | {"export": export, "prove": proven - export, "memory": memory}


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--nodes", multiple=True, type=int, help="Also a network of so many nodes.")
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(networks: tuple[str, ...], nodes: tuple[int, ...], path: str | None) -> None:
    """CPU seconds from network to ONNX, one thread."""
    one_thread()
    names = networks or (() if nodes else DEFAULT)
    example = (torch.randn(2, 8, generator=torch.Generator().manual_seed(0)),)
    measure("", deep(20), example)  # the first pass through the code loads modules
    rows = [
        measure(name, build(name), inputs(name, 1)) | {"forwards": forwards(name)} for name in names
    ]
    rows += [measure(f"{n} nodes", deep(n), example) | {"memory": None} for n in nodes]
    heads = ("network", *(f"{step} s" for step in STEPS), "export memory / model")
    click.echo(table((*heads, "prepare / forward"), [_cells(row) for row in rows]))
    click.echo(f"measured on {this_cpu()}")
    write_json(rows, path)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    steps = (f"{row[step]:.2f}" for step in STEPS)
    rest = ("" if row.get(key) is None else f"{row[key]:.2f}" for key in ("memory", "forwards"))
    return (row["network"], *steps, *rest)


if __name__ == "__main__":
    main()
