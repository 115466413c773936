"""Makes files here, runs them on emulated CPUs.

Run: python -m tests.emulated [--out DIR] [KIND ...]

Kinds: haswell (x86 without VNNI: saturating), nehalem (SSE only), arm64. Debian's emulators are
installed where they are missing, which takes root.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
import torch

from fxquant import QuantizationSimModel
from fxquant.models import digits
from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.ort.cpu import probe_model
from fxquant.onnx.parity.teacher_forcing import cut_at
from fxquant.onnx.session import show
from tests.emulated import arm64

NETWORKS = ("resnet18", "mobilenet_v2", "vit", "bert")
X86 = {"haswell": "Haswell", "nehalem": "Nehalem"}
SMOKE = Path(__file__).with_name("smoke.py")


def make(folder: Path) -> None:
    """Networks of random weights in both forms, whole and cut, and what kernels should give."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        torch.manual_seed(0)
        recipe = digits.RECIPES[name]
        batches = list(digits.calibration(recipe.encode))
        sim = QuantizationSimModel(recipe.factory().eval(), batches[0], "min_max")
        sim.compute_encodings(batches[:2])
        for deploy in ("any", "avx2"):
            lowered = lower(sim.model, (batches[0], {}), contrib=True, deploy=deploy)
            inputs = zip(lowered.input_names, batches[0], strict=True)
            feeds = {n: x[:4].numpy() for n, x in inputs}
            exact, other = (IntegerModel(lowered.model, cpu=c) for c in ("exact", "avx2"))
            names = exact.visible_names
            path = folder / f"{name}.{deploy}.onnx"
            integers = exact.run(feeds, names)
            _save(path.with_suffix(".npz"), integers)
            _save(path.with_suffix(".saturated.npz"), other.run(feeds, names))
            segments = lowered.model.clone()
            cut_at(segments, integers)
            ir.save(segments, path.with_suffix(".segments.onnx"))
            show(lowered.model, names)
            ir.save(lowered.model, path)
        _save(folder / f"{name}.npz", feeds)
    ir.save(probe_model(), folder / "probe.onnx")
    a, b = np.full((1, 4), 255, np.uint8), np.full((4, 1), 127, np.int8)
    np.savez(folder / "probe.npz", a=a, b=b, exact=4 * 255 * 127)


def _save(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def command(kind: str, out: Path) -> list[str]:
    """What runs Python as a CPU of this kind."""
    if kind == "arm64":
        return arm64.command(out / "arm64")
    if shutil.which("qemu-x86_64") is None:
        subprocess.run(["apt-get", "update"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["apt-get", "install", "-y", "qemu-user"], check=True)
    return ["qemu-x86_64", "-cpu", X86[kind], sys.executable]


@click.command()
@click.argument("kinds", nargs=-1, type=click.Choice([*X86, "arm64"]))
@click.option("--out", default="out/emulated", show_default=True, metavar="DIR")
def main(kinds: tuple[str, ...], out: str) -> None:
    """Compare exported files on emulated CPUs with the integer executor."""
    folder = Path(out).absolute()
    make(folder / "files")
    failed = []
    for kind in kinds or (*X86, "arm64"):
        click.echo(f"{kind}:")
        run = subprocess.run(
            [*command(kind, folder), str(SMOKE), str(folder / "files")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        noise = ("TCG doesn't support",)  # features that emulators lack and nobody asked for
        text = run.stdout + run.stderr
        lines = (x for x in text.splitlines() if not any(n in x for n in noise))
        click.echo("\n".join(lines))
        failed += [kind] if run.returncode else []
    sys.exit(f"failed on {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
