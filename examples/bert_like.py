"""A BERT-like encoder: what smoothing and reconstruction add to the default, in decibels.

Run: python -m examples.bert_like [--out DIR] [--epochs N] [--bits N]

The encoder reads digits as 17 tokens and a mask. Decibels are those of its logits against the
float network, on test images that calibration has not seen; 6 dB more halve the error.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import click
import torch

import fxquant
from fxquant.models.digits import RECIPES, calibration
from fxquant.models.training import accuracy, as_tokens, digits, train
from fxquant.ptq import reconstruct

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, fx


@torch.no_grad()
def decibels(model: Callable[..., Tensor], reference: Callable[..., Tensor]) -> float:
    """Power of the logits over that of their error."""
    _, test = digits()
    pairs = [(reference(*x), model(*x)) for x, _ in test.batches(as_tokens)]
    signal = sum(float(real.square().sum()) for real, _ in pairs)
    noise = sum(float((real - ours).square().sum()) for real, ours in pairs)
    return float(10 * torch.tensor(signal / noise).log10())


def simulation(
    prepared: fx.GraphModule, batches: list[tuple[Tensor, ...]], bits: int
) -> fxquant.QuantizationSimModel:
    """Calibrated. Embedding tables keep 8 bits: nothing averages the errors of a look-up out."""
    tables = {"operators": {"embedding": {"weight": {"bitwidth": 8}}}}
    sim = fxquant.QuantizationSimModel(prepared, batches[0], default_param_bw=bits, config=tables)
    sim.compute_encodings(batches)
    return sim


@click.command()
@click.option("--out", default="out", show_default=True, metavar="DIR", help="Where files go.")
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--bits", default=4, show_default=True, type=click.IntRange(2, 8), help="Of weights.")
def main(out: str, epochs: int, bits: int) -> None:
    """Quantize an encoder by default and with techniques, and compare them with the float one."""
    net = train(replace(RECIPES["bert"], epochs=epochs))
    batches = list(calibration(as_tokens))
    prepared = fxquant.prepare_model(net, batches[0])

    def tell(name: str, model: Callable[..., Tensor], noise: str) -> None:
        click.echo(f"{name:<38} {noise:>8}  {accuracy(model, as_tokens):6.1%} right")

    tell("float", net, "")
    sim = simulation(prepared, batches, bits)
    tell("the default", sim.model, f"{decibels(sim.model, net):.1f} dB")

    smoothed = copy.deepcopy(prepared)
    moved = fxquant.smooth_model(smoothed, batches, param_bw=bits)
    sim = simulation(smoothed, batches, bits)
    share = f"{sum(group.changed for group in moved.groups)} of {len(moved.groups)} groups"
    tell(f"smooth_model ({share})", sim.model, f"{decibels(sim.model, net):.1f} dB")

    reconstruct(sim, batches)
    tell("smooth_model, then reconstruct", sim.model, f"{decibels(sim.model, net):.1f} dB")

    proof = sim.export(out, "bert_like", batches[0])
    integers = f"{len(proof.integer_operators)} of {len(proof.operators)}"
    click.echo(f"\n{out}/bert_like.onnx: proven, {integers} operators in integer kernels")


if __name__ == "__main__":
    main()
