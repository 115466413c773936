"""Small networks of many kinds: exported as the README shows, opened at every level, run again.

The inputs of the second and third run have another batch size, other values, and where lengths are
an input other lengths. The file must give what the simulation gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fxquant import QuantizationSimModel, prepare_model
from fxquant.graph.pytree import tensors
from tests.helpers.shipped import Shipped
from tests.networks import attention, routing, sequences
from tests.networks.case import Case

CASES = routing.CASES | sequences.CASES | attention.CASES
# the others run in a second or two each; most of these take torch's exporter for single nodes
SLOW = {
    "experts, one each, by mask", "experts, two each, by index_add", "experts that choose",
    "early exit", "graph attention", "messages over edges", "dgcnn", "set transformer",
    "tab transformer", "cells", "conv lstm", "sequence to sequence", "qrnn", "sru", "mamba",
    "rwkv", "wavenet", "conv-tasnet", "stft of torch", "stft and back", "fnet",
    "fourier operator", "global filter", "shifted spectrum", "auto correlation",
    "long convolution", "gpt, tied", "rope, grouped queries, swiglu",
    "rope by complex numbers, one key", "bert with padding", "encoder and decoder", "perceiver",
    "maxvit",
}  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*while it trains:fxquant.prepare.SpecialisationWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    # torch says so once in a process, in whichever test is the first
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning"),
]
# 8 bits: a step is at most the range of an output, twice its peak, over 255
STEP = 2 / 255
NAMES = [pytest.param(n, marks=pytest.mark.full) if n in SLOW else n for n in CASES]


def one(inputs: tuple[Any, ...]) -> Any:
    """A single input as it is, several as a tuple."""
    return inputs if len(inputs) > 1 else inputs[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_right_at_every_level_and_size(name: str, tmp_path: Path) -> None:
    case: Case = CASES[name]
    torch.manual_seed(7)
    net = case.build().eval()
    runs = [case.inputs(size) for size in case.sizes]
    sim = QuantizationSimModel(prepare_model(net, one(runs[0])), one(runs[0]))
    sim.compute_encodings([one(run) for run in runs])
    proof = sim.export(tmp_path, "net", one(runs[0]))
    assert proof
    assert not [note for note in proof.notes if "batch size is fixed" in note] or len(runs) == 1
    file = Shipped(tmp_path / "net.onnx")
    for run in runs:
        with torch.no_grad():
            real, ours = tensors(net(*run)), tensors(sim.model(*run))
        for found in file.run(run):
            for of_float, wanted, got in zip(real, ours, found, strict=True):
                assert of_float.shape == got.shape
                assert_same(wanted.as_subclass(Tensor).numpy(), got, most=not case.choosing)


def assert_same(ours: Any, theirs: Any, *, most: bool) -> None:
    """Shapes, types and whole numbers equal; a flipped tie moves what follows by steps.

    No element is further off than two steps of the widest grid that the output can have, and (where
    `most`) nine of ten are the same but for the order of float sums.
    """
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if ours.dtype.kind != "f":
        np.testing.assert_array_equal(ours, theirs)
        return
    peak = float(np.abs(ours).max(initial=0.0))
    apart = np.abs(ours - theirs)
    assert apart.max(initial=0.0) <= 2 * STEP * peak
    assert not (most and apart.size) or (apart <= 1e-4 * peak).mean() >= 0.9


def test_every_network_runs_on_other_sizes() -> None:
    """What is asked of a file is what the network itself can do."""
    for case in CASES.values():
        net = case.build().eval()
        for size in case.sizes:
            with torch.no_grad():
                assert tensors(net(*case.inputs(size)))
    assert len(CASES) >= 60
