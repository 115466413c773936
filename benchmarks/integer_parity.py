"""How near the integer executor is to onnxruntime's default run, tensor by tensor.

Run: python -m benchmarks.integer_parity [--json FILE] [--size PIXELS] [NETWORK ...]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from benchmarks import networks
from benchmarks.measure import cpu_seconds, one_thread, write_json
from fxquant import QuantizationSimModel
from fxquant.io.text_tables import table
from fxquant.models.mobilenet import mobilenet_v3_small
from fxquant.models.squeezenet import SqueezeNet
from fxquant.models.unet import UNet
from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.session import Level, open_session, packed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

NETWORKS: dict[str, Callable[[], nn.Module]] = networks.NETWORKS | {
    "mobilenet_v3_small": mobilenet_v3_small,
    "squeezenet": SqueezeNet,
    "unet": lambda: UNet(num_classes=2, width=16, levels=3),
}
_IMAGES_ONLY = 224  # vision transformers have one size


def build(name: str) -> nn.Module:
    """A network with random weights; batch norms have statistics as after training."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return model


def inputs(name: str, batch: int, seed: int, size: int) -> tuple[Tensor, ...]:
    """Smooth random images, or random tokens with a mask."""
    generator = torch.Generator().manual_seed(seed)
    if name.startswith("bert"):
        ids = torch.randint(0, 30522, (batch, 128), generator=generator)
        return ids, torch.ones_like(ids)
    side = _IMAGES_ONLY if name.startswith(("vit", "swin")) else size
    coarse = torch.randn(batch, 3, side // 8, side // 8, generator=generator)
    fine = torch.randn(batch, 3, side, side, generator=generator)
    return (nn.functional.interpolate(coarse, size=side, mode="bilinear") + 0.3 * fine,)


def measure(name: str, folder: Path, size: int) -> list[dict[str, Any]]:
    """Two rows: floating-point islands in onnxruntime, and computed here."""
    x = inputs(name, 2, 0, size)
    sim = QuantizationSimModel(build(name), x, quant_scheme="min_max")
    sim.compute_encodings([x, inputs(name, 2, 1, size)])
    sim.export(folder, name, prove=False)
    path, rows = folder / f"{name}.onnx", []
    for islands in ("onnxruntime", "own"):
        ours = IntegerModel(path, islands=islands)
        feeds = {
            n: v.numpy() for n, v in zip(ours.input_names, inputs(name, 2, 2, size), strict=True)
        }
        names = [*ours.visible_names, *ours.output_names]
        seconds, found = cpu_seconds(lambda m=ours, f=feeds, w=names: m.run(f, w))  # type: ignore[misc]
        rows.append({"network": name, "islands": islands, "seconds": seconds}
                    | _apart(path, ours, feeds, found))  # fmt: skip
    return rows


def _apart(path: Path, ours: IntegerModel, feeds: dict[str, Any], found: Any) -> dict[str, Any]:
    model = ir.load(path)
    values = {v.name: v for node in model.graph for v in node.outputs}
    present = {v.name for v in model.graph.outputs}
    model.graph.outputs.extend(values[n] for n in ours.visible_names if n not in present)
    with packed(model) as source:
        theirs = open_session(source, Level.ALL).run(feeds)
    steps = [
        np.abs(found[n].astype(np.int64) - theirs[n].astype(np.int64)) for n in ours.visible_names
    ]
    total = sum(s.size for s in steps)
    return {
        "integers": total,
        "equal": sum(int((s == 0).sum()) for s in steps) / total,
        "steps": max(int(s.max(initial=0)) for s in steps),
        "output": max(float(np.abs(found[n] - theirs[n]).max()) for n in ours.output_names),
    }


@click.command()
@click.option("--json", "path", metavar="FILE", help="Also write the rows here.")
@click.option("--size", default=224, show_default=True, help="Pixels of a side.")
@click.argument("names", nargs=-1, metavar="[NETWORK ...]")
def main(names: tuple[str, ...], path: str | None, size: int) -> None:
    """Compare every quantized tensor with onnxruntime's default optimized run."""
    one_thread()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or NETWORKS:
            rows += measure(name, Path(folder), size)
    heads = ("network", "islands", "integers", "equal", "worst step", "output differs", "seconds")
    cells = [
        (r["network"], r["islands"], r["integers"], f"{r['equal']:.5%}", r["steps"],
         f"{r['output']:.2g}", f"{r['seconds']:.2f}")
        for r in rows
    ]  # fmt: skip
    click.echo(table(heads, cells))
    click.echo(f"measured on {this_cpu()}")
    write_json(rows, path)


if __name__ == "__main__":
    main()
