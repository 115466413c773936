"""Training in simulation: few bits, learned ranges, and the loop or the trainer that is at hand.

Run: python -m examples.train_in_simulation [--with loop|accelerate|lightning|trainer] [--out DIR]
         [--bits N] [--epochs N]

`sim.model` is an ordinary network, so each of the four only differs in who calls the optimizer:
a loop, Hugging Face Accelerate, Lightning, or the Trainer of transformers.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import click
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxquant
from fxquant import qat
from fxquant.models.training import Recipe, accuracy, as_images, digits, train

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.optim import Optimizer

    Fit = Callable[[nn.Module, Optimizer, DataLoader[Any], int], None]

ENCODE = as_images(16, channels=1)
SCHEME = "training_range_learning_with_tf_init"


def network() -> nn.Sequential:
    """A small classifier of images [N, 1, 16, 16]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 10),
    )  # fmt: skip


def with_loop(model: nn.Module, optimizer: Optimizer, loader: DataLoader[Any], epochs: int) -> None:
    """The loop that everybody writes."""
    for _ in range(epochs):
        for x, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()


def with_accelerate(
    model: nn.Module, optimizer: Optimizer, loader: DataLoader[Any], epochs: int
) -> None:
    """The same loop; Accelerate brings devices, ranks and mixed precision."""
    from accelerate import Accelerator  # type: ignore[import-not-found,unused-ignore]

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(epochs):
        for x, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(x), labels))
            optimizer.step()


def with_lightning(
    model: nn.Module, optimizer: Optimizer, loader: DataLoader[Any], epochs: int
) -> None:
    """The simulation inside of a LightningModule."""
    import lightning  # type: ignore[import-not-found,unused-ignore]

    class Classifier(lightning.LightningModule):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> Tensor:
            x, labels = batch
            return F.cross_entropy(self.model(x), labels)

        def configure_optimizers(self) -> Optimizer:
            return optimizer

    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(), loader)


def with_trainer(
    model: nn.Module, optimizer: Optimizer, loader: DataLoader[Any], epochs: int
) -> None:
    """The Trainer wants samples that are dicts, and a model that returns its loss."""
    from transformers import (  # type: ignore[import-not-found,unused-ignore]
        Trainer,
        TrainingArguments,
    )

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.model(pixel_values)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    pairs: Any = loader.dataset
    samples = [{"pixel_values": x, "labels": y} for x, y in pairs]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=loader.batch_size,
            lr_scheduler_type="constant", max_grad_norm=0.0, report_to="none", use_cpu=True,
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(WithLoss(), arguments, train_dataset=samples,
                          optimizers=(optimizer, None))  # fmt: skip
        trainer.train()


FITS: dict[str, Fit] = {
    "loop": with_loop, "accelerate": with_accelerate, "lightning": with_lightning,
    "trainer": with_trainer,
}  # fmt: skip


@click.command()
@click.option("--with", "how", default="loop", show_default=True, type=click.Choice(list(FITS)))
@click.option("--out", default="out", show_default=True, metavar="DIR", help="Where files go.")
@click.option("--bits", default=2, show_default=True, type=click.IntRange(2, 8), help="Of both.")
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(1))
def main(how: str, out: str, bits: int, epochs: int) -> None:
    """Train a network, quantize it to few bits, and train the simulation."""
    net = train(Recipe(network, ENCODE, epochs=12))
    data, _ = digits()
    batches = [x for (x,), _ in data.batches(ENCODE)][:8]
    sim = fxquant.QuantizationSimModel(net, batches[0], SCHEME, bits, bits)
    sim.compute_encodings(batches)
    click.echo(f"float:                {accuracy(net, ENCODE):.1%}")
    click.echo(f"{bits} bits, calibrated:   {accuracy(sim.model, ENCODE):.1%}")

    torch.manual_seed(0)
    (images,) = ENCODE(data.images)
    loader = DataLoader(TensorDataset(images, data.labels), batch_size=32, shuffle=True)
    optimizer = torch.optim.Adam(qat.parameter_groups(sim.model, lr=2e-3, range_lr=2e-3))
    sim.model.train()
    FITS[how](sim.model, optimizer, loader, epochs)
    sim.model.eval()
    click.echo(f"{bits} bits, trained:      {accuracy(sim.model, ENCODE):.1%} ({how})")

    proof = sim.export(out, "trained", batches[0])
    click.echo(f"{out}/trained.onnx: proven: {proof.proven}")


if __name__ == "__main__":
    main()
