"""Data of the command line: keys of arrays, pairs and dicts of functions, folders of images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fxquant.cli import main
from fxquant.cli.batches import load_data
from fxquant.cli.image_folder import imagenet, load_folder
from fxquant.cli.input_keys import Keys
from fxquant.cli.loading import build_model

if TYPE_CHECKING:
    from click.testing import Result

Image = pytest.importorskip("PIL.Image")

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, 4)

    def forward(self, pixel_values, scale=None, labels=None):
        assert labels is None
        x = self.head(self.body(pixel_values).flatten(1))
        return {"logits": x if scale is None else x * scale}


def net():
    torch.manual_seed(0)
    return Net()


def batches(seed=1):
    generator, model = torch.Generator().manual_seed(seed), net().eval()
    for _ in range(2):
        x = torch.randn(6, 3, 8, 8, generator=generator)
        with torch.no_grad():
            yield x, model(x)["logits"].argmax(1)


def dicts():
    for x, y in batches():
        yield {"pixel_values": x, "labels": y, "image_id": y + 7}


def other_names():
    for x, y in batches():
        yield {"image": x, "digit": y}


def small(image):
    rows = torch.tensor(list(image.convert("RGB").resize((8, 8)).tobytes()))
    return rows.reshape(8, 8, 3).permute(2, 0, 1) / 255


def flat(image):
    return small(image)[0]


def uneven(image):
    return torch.zeros(3, *image.size)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, arrays and images; it is the current one."""
    (tmp_path / "net.py").write_text(NETWORK)
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    pairs = list(scope["batches"]())  # type: ignore[operator]
    x, y = (np.concatenate([np.asarray(p[i]) for p in pairs]) for i in (0, 1))
    names = np.array(["zero", "one"])
    np.savez(tmp_path / "data.npz", image=x, digit=y, names=names, scale=np.ones((12, 1)))
    for name in ("ants", "bees"):
        (tmp_path / "images" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (20, 10 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / ("ants", "bees")[i % 2] / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quantize(*arguments: str) -> Result:
    given = ("quantize", "net.py:net", "--out", "out", "--no-proof", "-q", *arguments)
    return CliRunner().invoke(main, given)


KEYS = ("--calibration", "data.npz", "--input", "image")


@pytest.mark.parametrize(
    "arguments",
    [
        (*KEYS, "--evaluate", "data.npz", "--label", "digit"),
        (*KEYS[:2], "--input", "pixel_values=image", "--evaluate", "data.npz", "--labels", "digit"),
        ("--calibration", "net.py:dicts", "--evaluate", "net.py:dicts"),
        ("--calibration", "net.py:batches", "--evaluate", "net.py:batches"),
        ("--calibration", "net.py:other_names", "--evaluate", "net.py:other_names",
         "--labels", "digit"),
        ("--calibration", "net.py:other_names", "--input", "image", "--evaluate", "net.py:batches"),
    ],
)  # fmt: skip
def test_all_ways_to_give_the_same_data_score_alike(
    folder: Path, arguments: tuple[str, ...]
) -> None:
    if arguments[-1] == "net.py:batches" and "--input" in arguments:
        result = quantize(*arguments)  # pairs have no keys
        assert (result.exit_code, "FXQ728" in result.stderr) == (2, True)
        return
    result = quantize(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["evaluation"]
    assert (found["metric"], found["unit"], found["float"]) == ("accuracy", "%", 100.0)
    assert found["simulation"] >= 75
    assert 0 < found["onnxruntime"] <= 100, "default kernels saturate on some CPUs"


def test_several_inputs_are_given_by_name_or_in_order(folder: Path) -> None:
    model = build_model("net.py:net")
    named = Keys(("scale", "pixel_values=image"))
    with pytest.raises(Exception, match="FXQ728"):
        load_data("data.npz", model=model, keys=named)
    both = load_data("data.npz", model=model, keys=Keys(("scale=scale", "pixel_values=image")))
    first = both.first()
    assert isinstance(first, dict)
    assert {name: list(value.shape) for name, value in first.items()} == {
        "scale": [12, 1], "pixel_values": [12, 3, 8, 8],
    }  # fmt: skip
    order = load_data("data.npz", model=model, keys=Keys(("image", "scale")), batch_size=5)
    sizes = [[len(value) for value in batch] for batch in order if isinstance(batch, tuple)]
    assert sizes == [[5, 5], [5, 5], [2, 2]]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--calibration", "data.npz"), "FXQ722", "names"),
        (("--calibration", "data.npz", "--input", "imgae"), "FXQ728", "did you mean 'image'"),
        (("--calibration", "data.npz", "--input", "pixels=image"), "FXQ727", "pixel_values"),
        ((*KEYS, "--evaluate", "data.npz"), "FXQ770", "has no labels"),
        ((), "FXQ731", "--image-folder"),
        ((*KEYS, "--image-folder", "images"), "FXQ731", "leave the others out"),
        ((*KEYS, "--preprocess", "imagenet"), "FXQ732", "--preprocess"),
        (("--image-folder", "none"), "FXQ780", "none"),
        (("--image-folder", "."), "FXQ783", "differ"),
        (("--image-folder", "images/ants", "--preprocess", "net.py:uneven"), "FXQ783", "shape"),
        (("--image-folder", "images", "--preprocess", "net.py:flat"), "FXQ783", "[8, 8]"),
        (("--image-folder", "images", "--preprocess", "imagent"), "FXQ701", "imagent"),
    ],
)
def test_mistakes(folder: Path, arguments: tuple[str, ...], code: str, says: str) -> None:
    if arguments[-1:] == (".",):
        arguments = ("--image-folder", "images", "--preprocess", "net.py:uneven")
    result = quantize(*arguments)
    assert result.exit_code == 2, result.output
    assert code in result.stderr
    assert says in result.stderr
    assert not (folder / "out").exists()


def test_a_folder_of_images_calibrates_and_scores(folder: Path) -> None:
    given = ("--image-folder", "images", "--preprocess", "net.py:small", "--batch-size", "2")
    result = quantize(*given, "--max-batches", "2", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["evaluation"]
    whole = load_folder("images", "net.py:small", 2)
    few, rest = whole.split(4)
    assert whole.classes == ("ants", "bees")
    assert {label for _, label in few.files} == {0, 1}, "both classes calibrate"
    assert len(few.files) == 4
    assert {*few.files, *rest.files} == {*whole.files}
    assert not {*few.files} & {*rest.files}, "what is scored was not calibrated on"
    model = build_model("net.py:net")
    with torch.no_grad():
        right = [(model(x)["logits"].argmax(1) == y).float() for x, y in rest.batches()]
    assert found["float"] == pytest.approx(100 * float(torch.cat(right).mean()))


def test_the_preprocessing_of_imagenet() -> None:
    pixels = np.zeros((300, 512, 3), np.uint8)
    pixels[:, 256:] = 255  # the right half is white
    found = imagenet(Image.fromarray(pixels))
    assert found.shape == (3, 224, 224)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert np.allclose(found[:, 100, 0], -mean / std, atol=1e-6)
    assert np.allclose(found[:, 100, 223], (1 - mean) / std, atol=1e-6)
    assert abs(int((found[0, 100] > 0).sum()) - 112) <= 1, "the middle is cut out"


def test_images_without_pillow_and_damaged_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "images" / "ants" / "0.png").write_bytes(b"no image")
    result = quantize("--image-folder", "images", "--preprocess", "net.py:small")
    assert (result.exit_code, "FXQ782" in result.stderr) == (2, True)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    result = quantize("--image-folder", "images")
    assert (result.exit_code, "fxquant[images]" in result.stderr) == (2, True)
