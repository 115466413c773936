"""What a command is given may be anything: one typed error, and nothing is written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fxquant.cli import main

NETWORK = """
import sys
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)).eval()


def leaves():
    sys.exit(3)


def batches():
    return list(torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(1)))


def batches_that_leave():
    yield torch.ones(4, 8)
    sys.exit()


def wrong_label():
    return [(torch.ones(2, 8), torch.tensor([0, 3]))]


def ignored_label():
    return [(torch.ones(2, 8), torch.tensor([-100, 1]))]
"""
SOURCES = ("net.py:net", "--calibration", "net.py:batches", "--out", "out")
QUANTIZE = ("quantize", *SOURCES)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "file").write_text("")
    (tmp_path / "garbage.yaml").write_text("settings: 3")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("quantize", "net.py:leaves", *SOURCES[1:]), "FXQ705: calling .* SystemExit"),
        (("calibrate", "net.py:net", "--calibration", "net.py:batches_that_leave", "--out", "s"),
         "FXQ705: reading .* SystemExit"),
        ((*QUANTIZE, "--evaluate", "net.py:wrong_label"), "FXQ771: .* labels such as 3, and 3"),
        ((*QUANTIZE, "--evaluate", "net.py:ignored_label"), "FXQ771: .* labels such as -100"),
        ((*QUANTIZE, "--param-bw", "1"), r"FXQ221: .*\n  fix: QuantConfig.json_schema"),
        (("quantize", "net.py:net", "--image-folder", "file", "--out", "out"), "FXQ780: .* a file"),
        (("verify", "."), "FXQ740: .* is a folder"),
        (("profile", "file", "--data", "."), "FXQ740: .* is a folder"),
        (("diff", "file", "absent"), r"FXQ773: (?!FXQ)"),
        (("inspect", "net.py:net", "--input-shape", "2,8", "--picture", "p.png"), "FXQ735: "),
        (("report", "net.py:net", "--input-shape", "2,8", "--out", "r.html", "--recipe",
          "garbage.yaml"), "FXQ775: "),
        (("calibrate", "net.py:net", "--calibration", "net.py:batches", "--shard", "3/3", "--out",
          "s"), "FXQ725: shard 3 of 3 of net.py:batches gives no data"),
    ],
)  # fmt: skip
def test_one_error_says_what_and_nothing_is_left(
    folder: Path, arguments: tuple[str, ...], text: str
) -> None:
    before = {p.name for p in folder.iterdir()}
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 2, result.output
    assert f"error: {text[:6]}" in result.stderr

    assert re.search(text, result.stderr), result.stderr
    assert {p.name for p in folder.iterdir()} - before <= {"out", "__pycache__"}
    assert not list(folder.glob("out/*"))


def test_a_seed_that_torch_does_not_take(folder: Path) -> None:
    run = CliRunner().invoke
    assert run(main, list(QUANTIZE)).exit_code == 0
    result = run(main, ["run", "out/net.recipe.yaml", "--out", "again", "--seed", str(2**64)])
    assert result.exit_code == 2
    assert "FXQ777: seed: " in result.stderr
    assert not list(folder.glob("again/*"))


def test_a_network_without_parameters_is_told_from_a_proven_one(folder: Path) -> None:
    (folder / "bare.py").write_text("from torch import nn\ndef net():\n    return nn.ReLU()\n")
    np.save("x.npy", np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32))
    arguments = ["quantize", "bare.py:net", "--calibration", "x.npy", "--out", "out"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "no tensor is quantized" in result.stdout
    assert "quantized elements" not in result.stdout
