"""Runs exported files on an emulated CPU and compares their integers with what they should be.

Needs numpy and onnxruntime only, so that it runs where torch does not. Called by
`python -m tests.emulated` with a folder of `NAME.DEPLOY.onnx`, `NAME.DEPLOY.npz` (the integers that
exact kernels give), `NAME.DEPLOY.saturated.npz` (those of saturating kernels) and `NAME.npz` (the
inputs); integers are outputs of the files.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

# float islands round their last bits otherwise on every kind of CPU, and ties follow them
LEAST = {"resnet18": 1.0, "mobilenet_v2": 1.0, "vit": 0.999, "bert": 0.999}


def run(path: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    """All outputs by name at the default level."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def equal(found: dict[str, Any], wanted: dict[str, Any]) -> tuple[float, int]:
    """Share of equal integers and the largest difference."""
    same = elements = most = 0
    for name, array in wanted.items():
        steps = np.abs(found[name].astype(np.int64) - array.astype(np.int64))
        elements, same = elements + steps.size, same + int((steps == 0).sum())
        most = max(most, int(steps.max(initial=0)))
    return same / elements, most


def is_exact(folder: Path) -> bool:
    """What the byte products of this CPU are, as `fxquant.onnx.ort.cpu` finds it."""
    with np.load(folder / "probe.npz") as stored:
        feeds, wanted = {n: stored[n] for n in ("a", "b")}, int(stored["exact"])
    return int(run(folder / "probe.onnx", feeds)["y"][0, 0]) == wanted


def check(folder: Path) -> int:
    """Print a line a file; 1 if one is wrong."""
    exact = is_exact(folder)
    kind = "exact" if exact else "saturating"
    print(f"{platform.machine()}, onnxruntime {onnxruntime.__version__}: u8·s8 products {kind}")
    failed = 0
    for path in sorted(folder.glob("*.*.onnx")):
        name, deploy = path.stem.split(".")
        # uint8 operands are exact everywhere
        usual = path.with_suffix(".npz")
        stored = usual if exact or deploy == "avx2" else path.with_suffix(".saturated.npz")
        with np.load(folder / f"{name}.npz") as feeds, np.load(stored) as wanted:
            share, most = equal(run(path, dict(feeds)), dict(wanted))
        good = share >= LEAST[name]
        failed += not good
        print(f"  {'ok  ' if good else 'FAIL'} {name} for {deploy}: {share:.4%} of integers equal, "
              f"largest difference {most} step(s)")  # fmt: skip
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(check(Path(sys.argv[1])))
