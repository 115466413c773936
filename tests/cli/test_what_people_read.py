"""Lists, help, widths of lines, checkpoints that are looked into, networks by name, JSON."""

from __future__ import annotations

import json
import logging
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fxquant.cli import main, shipped
from fxquant.cli.commands.catalogue_commands import DESCRIPTIONS
from fxquant.config import QuantConfig
from fxquant.io.text_tables import fitting, table, wrapped
from fxquant.targets import available, load_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

NETWORK = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Softmax(1))
    return nn.Sequential(nn.ModuleDict({"a_feature_extractor_with_a_long_name": inner}).pop(
        "a_feature_extractor_with_a_long_name"))


def batches():
    yield torch.randn(4, 3, 8, 8)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network; it is the current one, and lines have 80 columns."""
    (tmp_path / "net.py").write_text(NETWORK)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def _commands(group: click.Group = main, *path: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, *path, name)
        else:
            yield (*path, name)


@pytest.mark.parametrize("command", [(), *_commands()], ids="-".join)
def test_help_fits_80_columns_and_every_command_has_json(command: tuple[str, ...]) -> None:
    result = call(*command, "--help")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert not command or "--json" in result.stdout
    if not command:
        assert "..." not in result.stdout[20:].partition("Commands:")[2], "told in full"


def test_targets_are_those_that_are_shipped(folder: Path) -> None:
    assert list(shipped.targets()) == available()
    text = call("targets").stdout
    found = json.loads(call("targets", "--json").stdout)["targets"]
    assert [row["name"] for row in found] == available()
    for name in available():
        assert name in text
        assert wrapped(f"  {load_target(name).description}", 80) in text
    assert max(map(len, text.splitlines())) <= 80


def test_presets_are_those_that_a_configuration_takes(folder: Path) -> None:
    found = json.loads(call("presets", "--json").stdout)["presets"]
    assert {row["name"] for row in found} == set(DESCRIPTIONS)
    for row in found:
        assert QuantConfig.load(row["name"]) == QuantConfig(**row["config"])
    text = call("presets").stdout
    assert "per_tensor" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion(shell: str) -> None:
    result = call("completion", shell)
    assert result.exit_code == 0
    assert "_FXQUANT_COMPLETE" in result.stdout


def test_names_of_targets_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("_FXQUANT_COMPLETE", "zsh_complete"),
        ("COMP_WORDS", "fxquant quantize --target onnx"),
        ("COMP_CWORD", "3"),
    ):
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, [], prog_name="fxquant")
    assert result.stdout.split()[1::3] == ["onnxruntime_arm", "onnxruntime_x86"]


@pytest.mark.parametrize("arguments", [("nonsense",), ("quantize",), ("verify", "x", "--what")])
def test_mistakes_that_click_finds_are_json_too(arguments: tuple[str, ...]) -> None:
    result = call(*arguments, "--json")
    assert result.exit_code == 2
    assert set(json.loads(result.stdout)) == {"error", "code", "what"}
    assert call(*arguments).exit_code == 2


def test_files_that_cannot_be_read_are_2_and_differences_1(folder: Path) -> None:
    np.savez("data.npz", x=np.zeros(3))
    result = call("encodings", "diff", "data.npz", "net.py")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[1].startswith("error: FXQ630")
    Path("noise.onnx").write_bytes(b"noise")
    assert call("verify", "noise.onnx").exit_code == 2
    assert call("profile", "noise.onnx", "--data", "data.npz").exit_code == 2


@pytest.mark.parametrize(
    ("command", "out"),
    [
        (("quantize", "net.py:net", "--calibration", "net.py:batches", "--out"), "net.py"),
        (("quantize", "net.py:net", "--calibration", "net.py:batches", "--out"), "net.py/x"),
        (("calibrate", "net.py:net", "--calibration", "net.py:batches", "--out"), "net.py/x"),
        (("merge", "net.py:net", "shards", "--calibration", "net.py:batches", "--out"), "net.py"),
        (("inspect", "net.py:net", "--data", "net.py:batches", "--picture"), "net.py/x.svg"),
        (("report", "net.py:net", "--data", "net.py:batches", "--out"), "net.py/x.html"),
    ],
)
def test_where_results_go_is_tried_before_any_work(
    folder: Path, command: tuple[str, ...], out: str
) -> None:
    result = call(*command, out)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: FXQ542"), "not even the network was built"
    assert (folder / "net.py").read_text() == NETWORK


# --- checkpoints, networks by name ---------------------------------------------------------------


def test_weights_in_a_checkpoint_are_found_and_said(folder: Path) -> None:
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    state = scope["net"]().state_dict()  # type: ignore[operator]
    torch.save({"model": {"state_dict": state}, "epoch": 1}, "w.pt")
    result = call("validate", "net.py:net", "--data", "net.py:batches", "--weights", "w.pt")
    assert result.exit_code == 0, result.output
    assert "w.pt: the weights are those under 'model.state_dict'" in result.stderr


def _zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for timm: the calls that are made, and nothing else."""
    timm = types.ModuleType("timm")
    known = {"resnet18": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())}
    timm.is_model = known.__contains__  # type: ignore[attr-defined]
    timm.list_models = lambda: list(known)  # type: ignore[attr-defined]

    def create_model(name: str, *, pretrained: bool) -> nn.Module:
        assert not pretrained, "nothing is downloaded"
        return known[name]()

    timm.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)


def test_networks_of_timm_and_their_random_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _zoo(monkeypatch)
    given = ("validate", "timm:resnet18", "--input-shape", "1,3,8,8", "-q")
    result = call(*given)
    assert result.exit_code == 0
    assert "RANDOM WEIGHTS" in result.stderr, "said in spite of --quiet"
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict(), "w.pt")
    assert call(*given, "--weights", "w.pt").stderr == ""
    wrong = call("validate", "timm:resnet19", "--input-shape", "1,3,8,8")
    assert (wrong.exit_code, "did you mean 'resnet18'" in wrong.stderr) == (2, True)


@pytest.mark.parametrize(
    ("spec", "code"),
    [("timm:resnet18", "FXQ707"), ("torchvision:resnet18", "FXQ707"), ("hf:here", "FXQ707"),
     ("hf:bert-base-uncased", "FXQ709")],
)  # fmt: skip
def test_packages_that_are_not_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spec: str, code: str
) -> None:
    for name in ("timm", "torchvision.models", "torchvision", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    (folder / "here").mkdir()
    (folder / "here" / "config.json").write_text("{}")
    result = call("validate", spec, "--input-shape", "1,3,8,8")
    assert (result.exit_code, code in result.stderr) == (2, True)


# --- widths --------------------------------------------------------------------------------------


def test_reports_fit_80_columns(folder: Path) -> None:
    shape = ("--input-shape", "2,3,8,8")
    told = [call("validate", "net.py:net", *shape)]
    for target in ("onnxruntime_x86", "amd_aie2"):
        data = ("--calibration", "net.py:batches", "--out", target, "--target", target)
        told.append(call("quantize", "net.py:net", *data))
    for result in told:
        assert result.exit_code == 0, result.output
        assert max(map(len, result.stdout.splitlines())) <= 80
    assert "on amd_aie2, by its table: 3 of 4 operators on integers" in told[2].stdout
    assert "onnxruntime on this CPU, which ran the proof alone" in told[2].stdout
    assert "integer kernels of onnxruntime on this CPU" in told[1].stdout
    assert "by its table" not in told[1].stdout


def test_words_are_not_cut_and_paths_break_at_their_parts() -> None:
    rows = [("backbone.stage_one.relu", "a reason of some words", "models/resnet.py:103")]
    with fitting(49):
        found = table(("tensor", "why", "source"), rows)
    assert found.splitlines() == [
        "tensor           why              source",
        "---------------  ---------------  ---------------",
        "backbone.        a reason of      models/",
        "stage_one.relu   some words       resnet.py:103",
    ]
    assert table(("tensor",), [("x" * 70,)]).endswith("…"), "outside of it long cells are cut"
    text = wrapped("note: a line of words\n  models/a_name_that_is_longer_than_any_line.py", 16)
    assert text.splitlines()[:2] == ["note: a line of", "  words"]
    assert "  models/a_name_that_is_longer_than_any_line.py" in text, "a path stays whole"


def test_verbose_tells_times_and_quiet_contradicts_it(folder: Path) -> None:
    given = ("validate", "net.py:net", "--input-shape", "2,3,8,8")
    assert "  took " in call(*given, "-v").stderr
    assert call(*given, "-q").stderr == ""
    assert call(*given, "-q", "-v").exit_code == 2
    assert not logging.getLogger("fxquant").handlers, "a command leaves no handler behind"


def test_numbers_and_words_stay_whole_where_columns_are_narrow() -> None:
    rows = [("a.long.path.of.a.module.name", "QLinearConv", "0.070", "10.8%", "36.95")]
    with fitting(46):
        found = table(("node", "kernel", "ms", "%", "SQNR"), rows)
    assert all(word in found.splitlines()[2].split() for word in rows[0][1:])
    assert max(map(len, found.splitlines())) <= 46
    assert found.splitlines()[2].startswith("…"), "the end of a long name tells modules apart"
