"""An image classifier: trained on digits, quantized in one call, proven and scored in onnxruntime.

Run: python -m examples.image_classifier [--out DIR] [--epochs N] [--bits N]

`--bits 4` makes the call look for techniques that get the accuracy back. In DIR are the integer
file with its encodings and recipe, and report.html, which any browser opens.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch
from torch import nn

import fxquant
from fxquant.models.training import Recipe, as_images, digits, train

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ENCODE = as_images(16, channels=1)


class Net(nn.Module):
    """Three convolutions, a shortcut and a mean; `+` and functions may stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.conv2, self.norm2 = nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.conv3, self.norm3 = nn.Conv2d(24, 48, 3, stride=2), nn.BatchNorm2d(48)
        self.fc = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 16, 16] -> logits [N, 10]."""
        x = torch.max_pool2d(torch.relu(self.norm1(self.conv1(x))), 2)
        x = torch.relu(self.norm2(self.conv2(x)) + x)
        x = torch.relu(self.norm3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor]) -> float:
    """Percent of the test images that are labelled rightly."""
    _, test = digits()
    right = sum(
        int((torch.as_tensor(model(x)).argmax(1) == labels).sum())
        for (x,), labels in test.batches(ENCODE)
    )
    return 100 * right / len(test.labels)


@click.command()
@click.option("--out", default="out", show_default=True, metavar="DIR", help="Where files go.")
@click.option("--epochs", default=8, show_default=True, type=click.IntRange(1))
@click.option("--bits", default=8, show_default=True, type=click.IntRange(2, 8), help="Of weights.")
def main(out: str, epochs: int, bits: int) -> None:
    """Train, quantize, prove and score a classifier of handwritten digits."""
    net = train(Recipe(Net, ENCODE, epochs=epochs))
    data, _ = digits()
    batches = [x for (x,), _ in data.batches(ENCODE)][:8]
    result = fxquant.quantize(
        net, batches, out=out, name="classifier", evaluate=accuracy, accuracy_drop=0.5,
        param_bw=bits,
    )  # fmt: skip
    result.sim.report(Path(out) / "report.html", batches)
    click.echo(result.report)
    click.echo(f"\nfloat:       {result.float_score:.1f} % of the test images")
    click.echo(f"simulated:   {result.score:.1f} %")
    click.echo(f"onnxruntime: {result.runtime_score:.1f} %")
    click.echo(f"proven: {result.export.proven}, files: {out}/classifier.*, {out}/report.html")


if __name__ == "__main__":
    main()
