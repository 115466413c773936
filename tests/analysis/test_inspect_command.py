"""`fxquant inspect` with regions, targets and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest
from click.testing import CliRunner, Result

from fxquant.cli import main

_NET = """
from torch import nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, dilation=17, padding=17)
        self.c = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.c(F.gelu(self.b(F.relu(self.a(x)))))

def net():
    return Net()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(_NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inspect(*arguments: str) -> Result:
    given = ["inspect", "net.py:net", "--input-shape", "1,3,8,8", "-q", *arguments]
    return CliRunner().invoke(main, given)


def data(*arguments: str) -> Any:
    result = inspect("--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_regions_show_the_plan() -> None:
    plan = data("--region", "a", "--region", "c")
    rows = {r["module"]: (r["region"], r["precision"]) for r in plan["rows"]}
    assert plan["count"] == 2
    assert rows["a"] == (1, "uint8")
    assert rows["b"] == (0, "float")
    assert rows["c"] == (2, "uint8")
    assert all(r["why"] for r in plan["rows"] if r["operator"] not in ("begin", "end"))
    text = inspect("--region", "a..relu").stdout
    assert "1 region(s)" in text
    assert "net.py:" in text


def test_what_is_kept_float() -> None:
    rows = {r["module"]: r["region"] for r in data("--keep-float", "b")["rows"]}
    assert rows["b"] == 0
    assert rows["a"] == 1
    assert rows["c"] == 2


def test_a_network_without_stubs_is_one_region() -> None:
    assert data("--regions")["count"] == 0
    assert "no stubs" in inspect("--regions").stdout


def test_a_target_shows_what_it_takes(folder: Path) -> None:
    report = data("--target", "AMD_AIE2_Nx4_Overlay_cfg0")
    refused = {n["module"]: n for n in report["nodes"] if n["device"] == "float"}
    assert set(refused) == {"b", "gelu"}
    assert (refused["b"]["constraint"], refused["b"]["value"]) == ("dilation", "(17, 17)")
    assert [p["device"] for p in report["partitions"]] == ["target", "float", "target"]
    assert "3 of 5 operators on amd_aie2" in inspect("--target", "amd_aie2").stdout


def test_a_picture_is_drawn(folder: Path) -> None:
    result = inspect("--target", "amd_aie2", "--picture", "net.svg")
    assert result.exit_code == 0, result.output
    assert minidom.parse(str(folder / "net.svg"))
    result = inspect("--target", "amd_aie2", "--picture", "net.html")
    assert result.exit_code == 0, result.output
    assert "amd_aie2" in (folder / "net.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--region", "zz"], "'zz' matches no module"),
        (["--target", "amd"], "there is no target 'amd'"),
        (["--picture", "x.svg", "--regions"], "FXQ735"),
    ],
)
def test_mistakes_are_errors_without_tracebacks(arguments: list[str], says: str) -> None:
    result = inspect(*arguments)
    assert result.exit_code != 0
    assert says in result.stderr
    assert "Traceback" not in result.output


def test_formats_of_the_operators() -> None:
    narrow, wide = inspect().stdout, inspect("--format", "wide").stdout
    assert max(map(len, narrow.splitlines())) <= 80
    assert "1x8x8x8" in wide
    assert "net.py:" in wide
    assert json.loads(inspect("--format", "json").stdout) == data()
    results = json.loads(inspect("--format", "model-explorer").stdout)["main"]["results"]
    assert results["a"]["value"] == "uint8 x int8"
    assert data()["rows"][1]["kind"] == "integer"
    result = inspect("--format", "wide", "--regions")
    assert result.exit_code != 0
    assert "FXQ738" in result.stderr
