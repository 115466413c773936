"""`fxquant calibrate` and `fxquant merge`: parts of a file of data, and the encodings of all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxquant.cli import main
from fxquant.cli.batches import load_data
from fxquant.cli.loading import build_model
from fxquant.sim import QuantizationSimModel
from tests.test_cli import call, folder

__all__ = ["folder"]  # a fixture
DATA = ("--calibration", "images.npy", "--batch-size", "2", "--scheme", "mse")


def test_parts_are_merged_to_the_encodings_of_one_process(folder: Path) -> None:
    for number in (1, 2, 3):
        out = f"parts/{number}.safetensors"
        done = call("calibrate", "net.py:net", *DATA, "--shard", f"{number}/3", "--out", out)
        assert done.exit_code == 0, done.output
        assert done.stdout == f"written: {Path(out)}\n"
    done = call("merge", "net.py:net", "parts", *DATA, "--out", "out", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"file": str(Path("out/net.json")), "batches": 5}
    data = load_data("images.npy", batch_size=2)
    sim = QuantizationSimModel(build_model("net.py:net"), data.first(), "mse")
    sim.compute_encodings(data)
    want = sim.save_encodings_to_json(folder, "want")
    assert (folder / "out" / "net.json").read_bytes() == want.read_bytes()


@pytest.mark.parametrize("shard", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2"])
def test_what_is_no_shard_is_a_mistake(folder: Path, shard: str) -> None:
    done = call("calibrate", "net.py:net", *DATA, "--shard", shard, "--out", "x")
    assert done.exit_code == 2
    assert "FXQ736" in done.stderr


def test_mistakes_have_a_code(folder: Path) -> None:
    done = call("calibrate", "net.py:net", *DATA, "--shard", "6/6", "--out", "x")
    assert "FXQ725" in done.stderr, "ten images are five batches"
    done = call("merge", "net.py:net", "nothing", *DATA, "--out", "out")
    assert done.exit_code == 2, "a file that cannot be read"
    assert "FXQ611" in done.stderr
    assert not (folder / "out").exists()
    assert {"calibrate", "merge"} <= set(main.commands)
