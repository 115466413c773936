"""Runs exported files on an emulated CPU and compares their integers with what they should be.

Needs numpy and onnxruntime only, so that it runs where torch does not. Called by
`python -m tests.emulated` with a folder of `NAME.DEPLOY.onnx`, `NAME.DEPLOY.segments.onnx` (the
same cut at its integers, so that each segment starts from what it should be given),
`NAME.DEPLOY.npz` (the integers that exact kernels give), `NAME.DEPLOY.saturated.npz` (those of
saturating kernels) and `NAME.npz` (the inputs); integers are outputs of the files.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

# Least share of equal integers of a segment. Float islands round their last bits otherwise on every
# kind of CPU, and ties follow them.
LEAST = {"resnet18": 1.0, "mobilenet_v2": 1.0, "vit": 0.999, "bert": 0.999}
# The whole file is judged where it is on integers from end to end. In a float residual stream one
# tie, taken the other way, reaches everything behind it.
INTEGER = ("resnet18", "mobilenet_v2")


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
    for path in sorted(p for p in folder.glob("*.*.onnx") if ".segments" not in p.name):
        name, deploy = path.stem.split(".")
        # uint8 operands are exact everywhere
        usual = path.with_suffix(".npz")
        stored = usual if exact or deploy == "avx2" else path.with_suffix(".saturated.npz")
        with np.load(folder / f"{name}.npz") as given, np.load(stored) as integers:
            feeds, wanted = dict(given), dict(integers)
        cut = feeds | {f"{n}.simulated": array for n, array in wanted.items()}
        whole = equal(run(path, feeds), wanted)
        segments = equal(run(path.with_suffix(".segments.onnx"), cut), wanted)
        good = segments[0] >= LEAST[name] and (name not in INTEGER or whole[0] == 1.0)
        failed += not good
        found = "; ".join(
            f"{what} {share:.4%} equal, at most {most} step(s) off"
            for what, (share, most) in (("segments", segments), ("whole", whole))
        )
        print(f"  {'ok  ' if good else 'FAIL'} {name} for {deploy}: {found}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(check(Path(sys.argv[1])))
