"""The same recipe gives the same file, byte for byte: over runs, processes and thread counts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

RECIPE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[3]))
from fxquant.sim import QuantizationSimModel
from tests.onnx.integer.test_networks import build, images
from tests.random_networks import network, randomize
name, folder = sys.argv[1], Path(sys.argv[2])
if name.isdigit():
    case = network(int(name))
    model, batches = case.model, [case.inputs(3), case.inputs(4)]
else:
    model, batches = build(name).eval(), [images(0), images(1)]
    randomize(model, 0)
sim = QuantizationSimModel(model, batches[0], sys.argv[4])
sim.compute_encodings(batches)
sim.export(folder, "model", prove=False)
"""


def digests(name: str, folder: Path, *, threads: int, seed: int, scheme: str) -> dict[str, str]:
    """SHA-256 of what a process of its own writes, by file name."""
    environment = os.environ | {"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": str(threads)}
    subprocess.run(
        [sys.executable, "-c", RECIPE, name, str(folder), str(threads), scheme],
        check=True, cwd=ROOT, env=environment, capture_output=True,
    )  # fmt: skip
    kinds = (".onnx", ".encodings", ".safetensors")
    files = sorted(p for p in folder.iterdir() if p.suffix in kinds)
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("resnet18", "min_max"),
        ("mobilenet_v2", "min_max"),
        ("5", "tf_enhanced"),
        pytest.param("vit", "percentile", marks=pytest.mark.full),
        pytest.param("9", "min_max", marks=pytest.mark.full),
    ],
)
def test_an_export_is_the_same_in_every_process(name: str, scheme: str, tmp_path: Path) -> None:
    first = digests(name, tmp_path / "a", threads=1, seed=1, scheme=scheme)
    again = digests(name, tmp_path / "b", threads=2, seed=2, scheme=scheme)
    assert len(first) >= 3
    assert first == again
