"""`fxquant quantize --evaluate`: what it prints, its exit codes, and every mistake's text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from fxquant.cli import main

if TYPE_CHECKING:
    from click.testing import Result

NETWORK = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


def pairs():
    generator, model = torch.Generator().manual_seed(1), net().eval()
    for _ in range(3):
        x = torch.randn(8, 3, 8, 8, generator=generator)
        with torch.no_grad():
            yield x, model(x).argmax(1)


def score(model):
    return sum(float((model(x).argmax(1) == y).float().mean()) for x, y in pairs()) / 3


def falling(model, seen=[]):
    seen.append(model)
    return 1.0 / len(seen)


def broken(model):
    raise ValueError("no labels today")


def number(model):
    return "0.5"


def images():
    return [x for x, _ in pairs()]


def floats():
    return [(x, y.float()) for x, y in pairs()]


def nothing():
    return iter(())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network and labelled data; it is the current one."""
    (tmp_path / "net.py").write_text(NETWORK)
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    pairs = list(scope["pairs"]())  # type: ignore[operator]
    x, y = (np.concatenate([np.asarray(p[i]) for p in pairs]) for i in (0, 1))
    np.savez(tmp_path / "data.npz", image=x, label=y)
    np.savez(tmp_path / "named.npz", image=x, digit=y)
    np.savez(tmp_path / "labels.npz", label=y)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quantize(*arguments: str, data: str = "net.py:pairs") -> Result:
    given = ("quantize", "net.py:net", "--calibration", data, "--out", "out", "--no-proof")
    return CliRunner().invoke(main, (*given, *arguments))


@pytest.mark.parametrize(
    "evaluation",
    [
        ("data.npz",),
        ("named.npz", "--labels", "digit"),
        ("net.py:pairs",),
        ("net.py:score",),
    ],
)
def test_float_simulation_and_runtime_are_scored(folder: Path, evaluation: tuple[str, ...]) -> None:
    result = quantize("--evaluate", *evaluation, "--json", "-q")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    scores = found["evaluation"]
    assert scores["metric"] == ("score" if evaluation[0] == "net.py:score" else "accuracy")
    whole = 1.0 if evaluation[0] == "net.py:score" else 100.0
    assert scores["float"] == whole
    assert 0.8 * whole < scores["simulation"] <= whole
    assert 0.8 * whole < scores["onnxruntime"] <= whole
    assert 0 < scores["bytes"] < scores["float_bytes"]
    assert scores["seconds"] > 0
    assert scores["float_seconds"] > 0
    assert [t["techniques"] for t in scores["search"]["trials"]] == [[]], "nothing was asked for"
    assert {Path(f).name for f in found["files"]} >= {"net.onnx", "net.encodings"}


def test_what_is_printed(folder: Path) -> None:
    result = quantize("--evaluate", "data.npz", "--accuracy-drop", "50")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    table = lines[lines.index(next(x for x in lines if "file" in x and "time" in x)) :]
    assert [x.split("  ")[0] for x in table[2:5]] == ["float model", "simulation", "onnxruntime"]
    assert table[0].split() == ["accuracy", "file", "time"]
    assert table[2].split()[2] == "100.00%"
    assert table[4].endswith("ms")
    assert "asked for: 50, reached" in lines
    assert "written:" in lines
    assert max(map(len, table[:6])) <= 80
    assert "scoring the float model" in result.stderr
    assert "trying the simulation" in result.stderr


def test_a_drop_that_is_missed_is_a_finding_and_the_best_is_written(folder: Path) -> None:
    result = quantize(
        "--evaluate", "net.py:falling", "--accuracy-drop", "0.1", "--techniques", "none"
    )
    assert result.exit_code == 1
    assert "MISSED" in result.stdout
    assert (folder / "out" / "net.onnx").exists()


@pytest.mark.parametrize(
    ("techniques", "tried"),
    [("none", [[]]), ("reconstruct", [[], ["reconstruct"]])],
)
def test_techniques_are_chosen(folder: Path, techniques: str, tried: list[list[str]]) -> None:
    result = quantize("--techniques", techniques, "--param-bw", "4", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["evaluation"]
    assert [t["techniques"] for t in found["search"]["trials"]] == tried
    assert found["onnxruntime"] is None
    assert found["simulation"] > 10, "decibels"


def test_a_drop_asks_for_techniques_and_a_scheme_for_itself_alone(folder: Path) -> None:
    arguments = ("--evaluate", "net.py:score", "--accuracy-drop", "0", "--param-bw", "2", "--json")
    free = json.loads(quantize(*arguments).stdout)["evaluation"]["search"]
    assert {n for t in free["trials"] for n in t["techniques"]} >= {"min_max", "reconstruct"}
    fixed = json.loads(quantize(*arguments, "--scheme", "mse").stdout)["evaluation"]["search"]
    assert fixed["skipped"]["min_max"] == "the scheme is given: mse"


def test_labels_that_come_with_calibration_data_are_left_out(folder: Path) -> None:
    assert quantize().exit_code == 0
    assert quantize(data="data.npz").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--evaluate", "absent.npz"], "FXQ720", "absent.npz"),
        (["--evaluate", "net.py:absent"], "FXQ704", "absent"),
        (["--evaluate", "labels"], "FXQ701", "labels"),
        (["--evaluate", "net.py:broken"], "FXQ705", "ValueError: no labels today"),
        (["--evaluate", "net.py:number"], "FXQ249", "str"),
        (["--evaluate", "net.py:images"], "FXQ770", "pairs"),
        (["--evaluate", "net.py:nothing"], "FXQ770", "no labels"),
        (["--evaluate", "net.py:floats"], "FXQ771", "float32"),
        (["--evaluate", "named.npz"], "FXQ770", "image, digit"),
        (["--evaluate", "named.npz", "--labels", "digits"], "FXQ770", "did you mean 'digit'"),
        (["--evaluate", "labels.npz"], "FXQ770", "no inputs"),
        (["--evaluate", "net.py:pairs", "--labels", "y"], "FXQ770", "leave it out"),
        (["--labels", "digit"], "FXQ733", "--evaluate"),
        (["--accuracy-drop", "1"], "FXQ255", "evaluate"),
        (["--techniques", "reconstrukt"], "FXQ257", "did you mean 'reconstruct'"),
        (["--evaluate", "data.npz", "--accuracy-drop", "-1"], "", "-1"),
    ],
)
def test_mistakes_are_usage_errors(
    folder: Path, arguments: list[str], code: str, says: str
) -> None:
    result = quantize(*arguments)
    assert result.exit_code == 2, result.output
    assert code in result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert not (folder / "out").exists()
