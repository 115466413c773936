"""`fxquant run` and `fxquant replay`: flags before the file, exit codes, and what is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from fxquant.cli import main
from fxquant.recipe import Recipe
from tests.recipe import test_recipes as network

if TYPE_CHECKING:
    from click.testing import Result

NETWORK = f"""{network.NETWORK}

def score(model):
    return -float(sum((model(x) - net()(x)).square().mean() for x in batches()))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network and a run of it in `out`; it is the current one."""
    (tmp_path / "net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    done = call("quantize", "net.py:net", "--calibration", "net.py:batches", "--out", "out")
    assert done.exit_code == 0, done.output
    assert "net.recipe.yaml" in done.stdout
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


RECIPE = "out/net.recipe.yaml"


def test_a_run_gives_the_same_and_its_replay_agrees(folder: Path) -> None:
    before = (folder / RECIPE).read_text()
    assert "network: ../net.py:net" in before
    done = call("run", RECIPE)
    assert done.exit_code == 0, done.output
    assert (folder / RECIPE).read_text() == before
    done = call("replay", RECIPE)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("the bytes of all 3 files agree\n")
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_flag_comes_before_the_file_and_is_told(folder: Path) -> None:
    state = {f"{n}.{k}": torch.ones(s) for n, o, i in ((0, 16, 6), (2, 4, 16))
             for k, s in (("weight", (o, i)), ("bias", (o,)))}  # fmt: skip
    save_file(state, "ones.safetensors")
    flags = ["--param-bw", "4", "--scheme", "tf_enhanced", "--weights", "ones.safetensors"]
    done = call("run", RECIPE, "--out", "new", *flags, "--no-proof", "--target", "onnxruntime_arm")
    assert done.exit_code == 0, done.output
    said = done.stdout.split("\n\n")[0].splitlines()
    assert said == [
        'weights: "ones.safetensors" was given; the recipe has nothing',
        'target: "onnxruntime_arm" was given; the recipe has "onnxruntime_x86"',
        "param_bw: 4 was given; the recipe has nothing",
        "prove: false was given; the recipe has true",
    ], "what is as it was is no change"
    recipe = Recipe.load("new/net.recipe.yaml")
    assert set(recipe.overridden) == {"weights", "param_bw", "prove", "target"}
    assert recipe.overridden["weights"].given == recipe.settings.weights == "../ones.safetensors"
    assert recipe.settings.param_bw == recipe.decided.param_bw == 4
    assert call("replay", "new/net.recipe.yaml").exit_code == 0


def test_a_measure_makes_a_search_of_it(folder: Path) -> None:
    done = call("run", RECIPE, "--evaluate", "net.py:score", "--accuracy-drop", "9", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["overridden"]) == {"evaluate", "accuracy_drop"}
    assert found["evaluation"]["met"]
    recipe = Recipe.load(RECIPE)
    assert recipe.settings.techniques == "auto"
    assert recipe.settings.evaluate == "../net.py:score"
    assert recipe.decided.float_score == 0.0
    assert call("replay", RECIPE).exit_code == 0
    missed = call("run", RECIPE, "--accuracy-drop", "0", "--techniques", "none", "--seed", "1")
    assert missed.exit_code == 1, missed.output


def test_a_replay_that_differs_has_exit_code_1(folder: Path) -> None:
    path = folder / RECIPE
    text = path.read_text()
    path.write_text(re.sub(r"net.onnx: \w+", f"net.onnx: {'a' * 64}", text))
    done = call("replay", RECIPE, "--json")
    assert done.exit_code == 1
    assert [f["name"] for f in json.loads(done.stdout)["files"] if not f["same"]] == ["net.onnx"]
    path.write_text(text)
    with (folder / "net.py").open("a") as file:
        file.write("# edited\n")
    done = call("replay", RECIPE)
    assert done.exit_code == 1
    assert "../net.py: the file is not the one recorded" in done.stdout
    done = call("run", RECIPE)
    assert done.exit_code == 0
    assert done.stdout.startswith("../net.py: the file is not the one recorded\n")
    assert call("replay", RECIPE).exit_code == 0, "the new recipe is of the new file"


def test_what_cannot_be_read_has_exit_code_2(folder: Path) -> None:
    path = folder / RECIPE
    text = path.read_text()
    line = text[: text.index("seed: 0")].count("\n") + 1
    path.write_text(text.replace("seed: 0", "seed: zero"))
    for command in ("run", "replay"):
        for recipe, code in ((RECIPE, "FXQ775"), ("nothing.yaml", "FXQ774")):
            done = call(command, recipe, "--json")
            assert done.exit_code == 2
            assert json.loads(done.stdout)["code"] == code
    assert f"line {line}" in json.loads(call("run", RECIPE, "--json").stdout)["at"]
