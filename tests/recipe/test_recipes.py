"""Recipes: what is recorded is enough to do a run again, and what is edited is checked."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant.errors import ConfigError
from fxquant.ptq import ReconstructionOptions
from fxquant.recipe import Recipe, replay, run_recipe
from fxquant.records.named_files import absolute, relative

NETWORK = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 6, generator=generator) for _ in range(3)]
"""


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 6, generator=generator) for _ in range(3)]


def made(folder: Path, **options: Any) -> Path:
    fxquant.quantize(net(), batches(), out=folder, name="net", param_bw=4, **options)
    return folder / "net.recipe.yaml"


def named(folder: Path, **options: Any) -> Path:
    """A run from Python that says how its network and data are called on a command line."""
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(NETWORK)
    file = folder / "net.py"
    sources = fxquant.recipe.Sources(network=f"{file}:net", calibration=f"{file}:batches")
    return made(folder / "out", sources=sources, **options)


# --- what is recorded ----------------------------------------------------------------------------


def test_a_search_from_python_is_done_again(tmp_path: Path) -> None:
    options = {"reconstruct": ReconstructionOptions(samples=32)}
    path = made(tmp_path, techniques=["reconstruct", "equalize"], options=options, seed=3)
    recipe = Recipe.load(path)
    assert recipe.settings.techniques == ["equalize", "reconstruct"]
    assert recipe.settings.options["reconstruct"]["samples"] == 32
    assert recipe.inputs.handed_in == ["network", "data"]
    assert "reconstruct" in recipe.decided.techniques
    assert len(recipe.decided.trials) > 2
    digests = recipe.artifact.files
    assert digests == {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in tmp_path.iterdir()
        if p.suffix in (".onnx", ".encodings", ".safetensors")
    }
    before = path.read_bytes()
    found = replay(path, model=net(), data=batches())
    assert found, str(found)
    assert not found.environment
    assert path.read_bytes() == before, "the check changes nothing"
    again = run_recipe(path, out=tmp_path / "b", model=net(), data=batches())
    assert again.outcome.recipe.read_bytes() == before, "equal runs write equal recipes"


def test_another_network_or_other_data_are_told(tmp_path: Path) -> None:
    path = made(tmp_path, techniques="none", prove=False)
    other = net()
    with torch.no_grad():
        other.get_parameter("0.weight").mul_(1.5)
    found = replay(path, model=other, data=batches()[:2])
    assert not found
    assert "the network's weights" in str(found)
    assert "the data: not the same" in str(found)
    assert "the network's operators" not in str(found)
    assert "files differ" in str(found)


def test_only_so_many_are_tried_as_there_was_time_for(tmp_path: Path) -> None:
    path = made(tmp_path, max_seconds=0, prove=False)
    recipe = Recipe.load(path)
    assert len(recipe.decided.trials) == 1
    # on a slower or a faster machine the clock would decide otherwise
    edited = path.read_text().replace("max_seconds: 0", "max_seconds: 1000")
    assert edited != path.read_text()
    path.write_text(edited)
    assert replay(path, model=net(), data=batches())


def test_a_configuration_and_a_target_are_in_the_recipe_itself(tmp_path: Path) -> None:
    config = {"layers": {"2": {"keep_float": True}}, "per_channel": False}
    target = fxquant.Target.model_validate(
        {**fxquant.targets.load_target("onnxruntime_arm").model_dump(), "name": "mine"}
    )
    path = made(tmp_path, techniques="none", config=config, target=target, prove=False)
    settings = Recipe.load(path).settings
    assert settings.config == {"layers": {"2": {"keep_float": True}}, "per_channel": False}
    assert isinstance(settings.target, dict)
    assert replay(path, model=net(), data=batches())


def test_what_only_python_can_give_is_asked_for(tmp_path: Path) -> None:
    path = made(tmp_path, techniques="none", evaluate=lambda _: 1.0, prove=False)
    with pytest.raises(ConfigError, match=r"FXQ778.*evaluate"):
        run_recipe(path, model=net(), data=batches())
    with pytest.raises(ConfigError, match=r"FXQ776.*the data"):
        run_recipe(path, model=net(), evaluate=lambda _: 1.0)
    assert replay(path, model=net(), data=batches(), evaluate=lambda _: 1.0)


def test_auto_quant_writes_one_too(tmp_path: Path) -> None:
    def measure(model: Any) -> float:
        return -float(sum((model(x) - net()(x)).square().sum() for x in batches()))

    auto = fxquant.AutoQuant(
        net(), batches()[0], batches(), measure, param_bw=4, results_dir=tmp_path
    )
    auto.optimize(allowed_accuracy_drop=1e9)
    path = tmp_path / "auto_quant.recipe.yaml"
    assert Recipe.load(path).inputs.handed_in == ["network", "data", "evaluate", "dummy_input"]
    given: dict[str, Any] = {"model": net(), "data": batches(), "evaluate": measure}
    assert replay(path, dummy_input=batches()[0], **given)
    assert "the first batch takes its place" in str(replay(path, **given))


# --- files that it names -------------------------------------------------------------------------


def test_paths_are_relative_and_a_tree_can_be_moved(tmp_path: Path) -> None:
    path = named(tmp_path / "here", techniques="none")
    text = path.read_text()
    assert "network: ../net.py:net" in text
    assert str(tmp_path) not in text
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert replay(tmp_path / "there" / "out" / "net.recipe.yaml")


def test_nothing_runs_when_a_file_has_changed(tmp_path: Path) -> None:
    path = named(tmp_path, techniques="none", prove=False)
    with (tmp_path / "net.py").open("a") as file:
        file.write("raise SystemExit('it ran')\n")
    found = replay(path)
    assert not found
    assert str(found).startswith("../net.py: the file is not the one recorded\nnot run")
    (tmp_path / "net.py").unlink()
    assert "the file is missing" in str(replay(path))


def test_specs_become_relative_and_back(tmp_path: Path) -> None:
    home = tmp_path / "a" / "b"
    for spec, written in {
        str(tmp_path / "a" / "x.npy"): "../x.npy",
        f"{home / 'n.py'}:net": "n.py:net",
        "package.module:net": "package.module:net",
    }.items():
        assert relative(spec, home) == written
        assert absolute(written, home) == spec
    assert relative("/elsewhere/x.npy", Path("/here")) == "/elsewhere/x.npy"


# --- other environments --------------------------------------------------------------------------


def test_another_environment_is_told_and_whether_bytes_agree(tmp_path: Path) -> None:
    path = named(tmp_path, techniques="none", prove=False)
    text = path.read_text()
    path.write_text(re.sub(r"torch: .*", "torch: 2.1.0", text))
    found = replay(path)
    assert found
    assert found.environment["torch"][0] == "2.1.0"
    assert "torch: 2.1.0 recorded" in str(found)
    assert str(found).endswith("files agree; the environment does not")
    path.write_text(re.sub(r"net.onnx: \w+", f"net.onnx: {'a' * 64}", path.read_text()))
    assert not replay(path)
    assert str(replay(path)).endswith("1 of 3 files differ, the environment, too")


# --- files that are wrong ------------------------------------------------------------------------


GARBAGE = {
    "not YAML": ("seed: 0", "seed: [0", "FXQ774"),
    "a tab": ("  seed: 0", "\tseed: 0", "FXQ774"),
    "a control character": ("seed: 0", "seed: \x00", "FXQ774"),
    "a tag": ("seed: 0", "seed: !!python/object/apply:os.system [ls]", "FXQ774"),
    "an anchor": ("seed: 0", "seed: &a 0", "FXQ774"),
    "a key twice": ("  seed: 0", "  seed: 0\n  seed: 1", "FXQ774"),
    "no date": ("prefix: net", "prefix: 2020-13-45", "FXQ774"),
    "too deep": ("config: {}", f"config: {'[' * 40}{']' * 40}", "FXQ774"),
    "a number too long": ("seed: 0", f"seed: {'9' * 5000}", "FXQ774"),
    "another kind": ("seed: 0", "seed: many", "FXQ775"),
    "an unknown key": ("seed: 0", "sead: 0", "FXQ775"),
    "out of range": ("opset: 21", "opset: 3", "FXQ775"),
    "none of the choices": ("techniques: none", "techniques: 7", "FXQ775"),
    "another format": ("format: 1", "format: 2", "FXQ775"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_a_recipe_that_was_edited_wrongly_is_refused_with_the_line(
    name: str, tmp_path: Path
) -> None:
    path = made(tmp_path, techniques="none", prove=False)
    old, new, code = GARBAGE[name]
    text = path.read_text()
    assert text.count(f"{old}\n") == 1
    path.write_text(text.replace(f"{old}\n", f"{new}\n"))
    line = text[: text.index(old)].count("\n") + 1
    with pytest.raises(ConfigError, match=code) as caught:
        Recipe.load(path)
    found = re.fullmatch(rf"{re.escape(str(path))}, line (\d+)", caught.value.at or "")
    assert found, caught.value
    # a bracket that is not closed shows in the line after it; a doubled key in its second line
    assert int(found[1]) - line in (0, 1)


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "list": b"- 1\n", "binary": bytes(range(256))}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=r"FXQ77[45]"):
            Recipe.load(tmp_path / name)
    (tmp_path / "large").write_bytes(b"a: 1\n" * (1 << 20))
    with pytest.raises(ConfigError, match=r"FXQ774.*bytes"):
        Recipe.load(tmp_path / "large")
    with pytest.raises(ConfigError, match="FXQ774"):
        Recipe.load(os.devnull)
    with pytest.raises(ConfigError, match="FXQ774"):
        Recipe.load(tmp_path / "nothing")


def test_options_of_a_technique_that_it_has_not_are_refused(tmp_path: Path) -> None:
    options = {"reconstruct": ReconstructionOptions()}
    path = made(tmp_path, techniques="none", options=options, prove=False)
    text = path.read_text()
    path.write_text(text.replace("samples: 256", "sampels: 256"))
    with pytest.raises(ConfigError, match=r"FXQ779.*sampels") as caught:
        run_recipe(path, model=net(), data=batches())
    assert "samples" in str(caught.value.fix)
    path.write_text(text.replace("damping: 0.01", "damping: much"))
    run_recipe(path, out=tmp_path / "x", model=net(), data=batches())  # nothing reads it here
