"""Networks for images and video: files at every level, on other values, batches and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxquant import QuantizationSimModel, prepare_model
from fxquant.graph.pytree import tensors
from fxquant.onnx.parity.report import ParityReport
from tests.helpers.shipped import Shipped
from tests.networks import blocks, detection, motion, segmentation
from tests.networks.parts import Entry

NETS: dict[str, Entry] = {
    **segmentation.NETS,
    **detection.NETS,
    **blocks.NETS,
    **motion.NETS,
}
VARIABLE = [name for name, entry in NETS.items() if entry.sizes]
# convolutions whose groups are the images of a batch have no form for another batch
FIXED = frozenset({"siamese tracker", "condconv"})
# written by torch's exporter, which takes seconds for each call
SLOW = frozenset({"enet", "rows above a score"})
# of many nodes: each has a relative that is faster
LARGE = frozenset({"flow by all pairs", "deformable", "detr"})
# places are chosen among rows that untrained networks rate alike: other rows, no more noise
CHOOSING = frozenset({
    "pointrend", "v-net", "retinanet", "centernet", "rows above a score", "matrix nms",
    "key points", "lanes",
})  # fmt: skip
LEAST_DB = 15.0
STEPS = 2


# what sizes are computed with: crops, pads, grids, cells, anchors, states
SIZED = frozenset({
    "u-net, bilinear, padded", "u-net, cropped", "deeplab v3", "pspnet", "bisenet", "depth",
    "yolo v5", "retinanet", "coordinate attention", "coordconv", "flow by warping", "stereo",
    "convlstm",
})  # fmt: skip


def marked(names: Any, slow: Any) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.full if n in slow else ()) for n in names]


def simulated(name: str) -> tuple[QuantizationSimModel, Entry]:
    """By the calls that the README shows."""
    entry = NETS[name]
    x = entry.example()
    sim = QuantizationSimModel(prepare_model(entry.model(), x), x)
    sim.compute_encodings([x, entry.example(seed=2)])
    return sim, entry


@pytest.mark.parametrize("name", marked(NETS, SLOW | LARGE))
def test_the_file_computes_what_the_simulation_does(name: str, tmp_path: Path) -> None:
    """The file as it is, at every level, on batches that neither calibration nor proof had."""
    sim, entry = simulated(name)
    report = sim.export(tmp_path, "net", entry.example())
    assert report.proven
    assert report.max_steps <= 1
    fixed = [n for n in report.notes if "the batch size is fixed" in n]
    assert bool(fixed) == (name in FIXED), fixed
    assert any("torch's exporter" in n for n in report.notes) == (name in SLOW), report.notes
    target = sim.integer_model()
    file = Shipped(tmp_path / "net.onnx")
    model, batch = entry.model(), entry.shapes[0][0]
    for wanted in {batch} if name in FIXED else {1, batch + 2}:
        given = entry.example([(wanted, *s[1:]) for s in entry.shapes], seed=3)
        with torch.no_grad():
            ours, real = tensors(sim.model(*given)), tensors(model(*given))
        for found in file.run(given):
            assert_close(ours, found)
        assert_close(ours, [t.numpy() for t in tensors(target(*given))])
        if name not in CHOOSING:
            assert_near(real, ours)


@pytest.mark.parametrize("name", marked(VARIABLE, set(VARIABLE) - SIZED))
def test_other_sizes_of_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is prepared and calibrated at one size computes at others what the float model does."""
    # fused layers of transformers round otherwise than the layers that they stand for
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    entry = NETS[name]
    model, x = entry.model(), entry.example()
    prepared = prepare_model(model, x)
    others = [entry.example(shapes) for shapes in entry.sizes]
    sim = QuantizationSimModel(prepared, x)
    sim.compute_encodings([x, *others])
    with torch.no_grad():
        for given in others:
            real = tensors(model(*given))
            for a, b in zip(real, tensors(prepared(*given)), strict=True):
                assert torch.equal(a, b)
            found = tensors(sim.model(*given))
            assert [t.dtype for t in found] == [t.dtype for t in real]
            if name not in CHOOSING:
                assert_near(real, found)


@pytest.mark.full
@pytest.mark.parametrize("name", VARIABLE)
def test_a_file_of_another_size(name: str, tmp_path: Path) -> None:
    sim, entry = simulated(name)
    for shapes in entry.sizes:
        given = entry.example(shapes, seed=4)
        report: ParityReport = sim.export(tmp_path, "net", given)
        assert report.proven
        with torch.no_grad():
            ours = tensors(sim.model(*given))
        for found in Shipped(tmp_path / "net.onnx").run(given):
            assert_close(ours, found, choosing=name in CHOOSING)


@pytest.mark.parametrize(
    "name", marked(["stereo", "deeplab v3+", "yolo v5", "pspnet"], NETS.keys() - {"stereo"})
)
def test_torch_exports_the_simulation(name: str) -> None:
    sim, entry = simulated(name)
    x = entry.example()
    with torch.no_grad():
        exported: Any = torch.export.export(sim.model, x).module()
        for a, b in zip(tensors(sim.model(*x)), tensors(exported(*x)), strict=True):
            assert torch.equal(a, b)


def assert_close(ours: list[Tensor], theirs: list[Any], *, choosing: bool = False) -> None:
    """Within a step of the widest grid or two, and nearly all of them equal.

    Where the values are those of chosen places, a flipped tie chooses another place: these
    few may be any.
    """
    assert len(ours) == len(theirs)
    for tensor, found in zip(ours, theirs, strict=True):
        wanted = tensor.detach().numpy()
        assert (wanted.shape, wanted.dtype) == (found.shape, found.dtype)
        if wanted.dtype.kind != "f":
            # integers are places that were chosen: a flipped tie chooses the next one
            assert (wanted == found).mean() >= 0.9 if wanted.size else True
            continue
        peak = float(np.abs(wanted).max(initial=0.0))
        apart = np.abs(wanted - found)
        # 8 bits: a step is at most the range, twice the peak, over 255
        far = apart > STEPS * 2 * peak / 255
        assert far.sum() <= (0.1 * far.size if choosing else 0)
        equal = apart <= 1e-4 * peak
        images = len(equal) - int(equal.reshape(len(equal), -1).all(1).sum()) if equal.size else 0
        # a flipped tie early in one image may move all that a classifier says of it
        assert images <= 1 or equal.mean() >= 0.9


def assert_near(real: list[Tensor], found: list[Tensor]) -> None:
    """The simulation is the float model with the noise of eight bits."""
    for a, b in zip(real, found, strict=True):
        assert a.shape == b.shape
        if a.is_floating_point():
            signal, noise = a.double().square().mean(), (a.double() - b.double()).square().mean()
            assert 10 * float(torch.log10(signal / noise.clamp(min=1e-30))) > LEAST_DB
