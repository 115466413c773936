"""A detector of which only the backbone is quantized: regions, what they hold, and the export.

Run: python -m examples.detection_head [--out DIR] [--steps N]

The detector finds digits on a canvas: the head says for every cell whether a digit has its middle
there, which one it is, and where in the cell. Heads lose most by quantization and compute little,
so this one stays in floating point; `insert_stubs` says so without a change of the network's code.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.analysis.inspector_regions import inspect_regions
from fxquant.models.training import digits
from fxquant.onnx.session import Level, open_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fxquant.models.training import Split

CANVAS, CELL, DIGIT = 32, 4, 8  # pixels
KINDS = 10
FOUND = 0.3  # a cell with a higher score holds a digit


class Backbone(nn.Module):
    """Features of every cell, with a shortcut."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 32, 32] -> [N, width, 8, 8]."""
        x = self.stem(x)
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + x)


class Head(nn.Module):
    """Scores of the kinds, and middles in pixels of the canvas."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.score = nn.Conv2d(width, KINDS, 1)
        nn.init.constant_(self.score.get_parameter("bias"), -2.0)  # most cells hold nothing
        self.place = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, width, 8, 8] -> scores [N, 10, 8, 8] in 0..1, middles [N, 2, 8, 8]."""
        rows = torch.arange(x.shape[2], device=x.device).reshape(1, 1, -1, 1)
        columns = torch.arange(x.shape[3], device=x.device).reshape(1, 1, 1, -1)
        row, column = self.place(x).sigmoid().split(1, dim=1)
        return self.score(x).sigmoid(), CELL * torch.cat([row + rows, column + columns], 1)


class Detector(nn.Module):
    """Backbone and head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), Head()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Head`."""
        return self.head(self.backbone(x))  # type: ignore[no-any-return]


def scenes(split: Split, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Canvases with a digit in each of two opposite quarters.

    Returns:
        Images [N, 1, 32, 32] in 0..1; kinds [N, 2]; middles [N, 2, (row, column)] in pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 1, CANVAS, CANVAS)
    chosen = torch.randint(len(split.labels), (count, 2), generator=generator)
    corners = torch.randint(CANVAS // 2 - DIGIT, (count, 2, 2), generator=generator)
    corners[:, 1] += CANVAS // 2
    for canvas, picked, places in zip(images, chosen, corners, strict=True):
        for index, (row, column) in zip(picked, places.tolist(), strict=True):
            canvas[0, row : row + DIGIT, column : column + DIGIT] = split.images[index] / 16
    return images, split.labels[chosen], corners + DIGIT / 2


def loss_of(net: Detector, images: Tensor, kinds: Tensor, middles: Tensor) -> Tensor:
    """Focal loss of the scores (Lin et al. 2017, arXiv:1708.02002), L1 of the middles."""
    scores, places = net(images)
    n = torch.arange(len(images))[:, None]
    cell = (middles // CELL).long()
    wanted = torch.zeros_like(scores)
    wanted[n, kinds, cell[..., 0], cell[..., 1]] = 1.0
    right = torch.where(wanted > 0, scores, 1 - scores).clamp(min=1e-6)
    focal = -((1 - right) ** 2) * right.log()
    away = F.l1_loss(places[n, :, cell[..., 0], cell[..., 1]], middles)
    return focal.sum() / kinds.numel() + away


def trained(steps: int) -> Detector:
    """A detector, trained on new scenes in every step."""
    data, _ = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Detector().train()
    optimizer = torch.optim.AdamW(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(net, *scenes(data, 48, seed=step)).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def found(detector: Callable[[Tensor], tuple[Tensor, Tensor]], count: int = 256) -> float:
    """Percent of the digits of unseen scenes found: the right kind, within two pixels."""
    _, test = digits()
    images, kinds, middles = scenes(test, count, seed=10**6)
    scores, places = detector(images)
    hits = 0
    for half in range(2):  # one digit stands in each
        part = slice(half * CANVAS // CELL // 2, (half + 1) * CANVAS // CELL // 2)
        best, at = scores[:, :, part, part].flatten(1).max(1)
        side = scores.shape[-1] // 2
        kind, row, column = at // side**2, at // side % side + part.start, at % side + part.start
        away = (places[torch.arange(count), :, row, column] - middles[:, half]).abs().amax(1)
        hits += int(((best > FOUND) & (kind == kinds[:, half]) & (away < 2)).sum())
    return 100 * hits / kinds.numel()


@click.command()
@click.option("--out", default="out", show_default=True, metavar="DIR", help="Where files go.")
@click.option("--steps", default=200, show_default=True, type=click.IntRange(1), help="Training.")
def main(out: str, steps: int) -> None:
    """Quantize the backbone of a detector, and leave its head in floating point."""
    net = trained(steps)
    data, _ = digits()
    batches = [scenes(data, 64, seed=-1 - i)[0] for i in range(4)]
    prepared = fxquant.prepare_model(net, batches[0])
    part = fxquant.insert_stubs(prepared, keep_float=["head"])
    click.echo(inspect_regions(part, batches[0]))
    sim = fxquant.QuantizationSimModel(part, batches[0])
    sim.compute_encodings(batches)

    proof = sim.export(out, "detector", batches[0])
    session = open_session(Path(out) / "detector.onnx", Level.ALL)

    def runtime(images: Tensor) -> tuple[Tensor, Tensor]:
        results = session.run({session.inputs[0]: images.numpy()})
        scores, places = (torch.from_numpy(results[name]) for name in session.outputs)
        return scores, places

    click.echo(f"\nfloat:       {found(net):.1f} % of the digits found")
    click.echo(f"simulated:   {found(sim.model):.1f} %")
    click.echo(f"onnxruntime: {found(runtime):.1f} %")
    integers = f"{len(proof.integer_operators)} of {len(proof.operators)}"
    click.echo(f"{out}/detector.onnx: proven, {integers} operators in integer kernels")


if __name__ == "__main__":
    main()
