"""The wheel and the source distribution hold everything, and work away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from fxquant import __version__

ROOT = Path(__file__).parent.parent
# run where the checkout is not: the graph, the targets, a pass, a network and the page are needed
SCRIPT = """
import pathlib, sys
import torch
import fxquant
from fxquant.models import digits

assert "site" in fxquant.__file__, fxquant.__file__
net = digits.resnet18().eval()
x = torch.rand(2, 1, 32, 32) if net.conv1.in_channels == 1 else torch.rand(2, 3, 32, 32)
sim = fxquant.QuantizationSimModel(net, x, target="qualcomm_htp")
sim.compute_encodings([x])
sim.report("report.html", [x])
print(fxquant.__version__, pathlib.Path("report.html").stat().st_size > 10_000)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both distributions, built from what git would ship."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if not name or not (path.is_symlink() or path.is_file()):
            continue
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            target.symlink_to(os.readlink(path))
        else:
            target.write_bytes(path.read_bytes())
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "build", "-n", "--outdir", folder, source],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_the_wheel_works_by_itself(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert __version__ in wheel.name
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [__version__, "True"]


def test_both_hold_all_of_the_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    (sdist,) = built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    here = {
        path.relative_to(ROOT).as_posix()
        for folder in ("fxquant", "passes", "models")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    package = {n if n.startswith("fxquant/") else f"fxquant/{n}" for n in here}
    assert package <= names, sorted(package - names)
    assert package <= shipped, sorted(package - shipped)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
