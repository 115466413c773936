"""A strided convolution of few channels, as one of 2×2 blocks: the same integers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxquant import QuantizationSimModel
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.session import Level, open_session, packed

CASES = [
    (k, p)
    for k, p in itertools.product(
        [(2, 2), (3, 3), (4, 4), (7, 7), (3, 5), (6, 2)], [(0, 0), (1, 1), (3, 3), (1, 2)]
    )
    if all(a <= b for a, b in zip(p, k, strict=True))
]


def _models(conv: nn.Conv2d, shape: tuple[int, ...] = (2, 3, 12, 16)) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    x = torch.rand(shape) * 3 - 1  # zero is not the smallest integer
    sim = QuantizationSimModel(nn.Sequential(conv, nn.ReLU()).eval(), x, quant_scheme="min_max")
    sim.compute_encodings([x])
    plain, blocks = (lower(sim.model, sim.example, contrib=c).model for c in (False, True))
    return plain, blocks, x.numpy()


def _strides(model: Any) -> list[int]:
    (conv,) = (node for node in model.graph if node.op_type == "Conv")
    return list(conv.attributes["strides"].as_ints())


@pytest.mark.parametrize(("kernel", "padding"), CASES)
def test_the_integers_are_the_same(kernel: tuple[int, int], padding: tuple[int, int]) -> None:
    torch.manual_seed(1)
    plain, blocks, x = _models(nn.Conv2d(3, 8, kernel, stride=2, padding=padding))
    assert (_strides(plain), _strides(blocks)) == ([2, 2], [1, 1])
    found = []
    for model in (plain, blocks):
        with packed(model) as source:
            found.append(open_session(source, Level.ALL).run({"input": x})["output"])
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv2d(3, 8, 3), (2, 3, 12, 12)),  # no stride
        (nn.Conv2d(3, 8, 1, stride=2), (2, 3, 12, 12)),  # reads a quarter of the values
        (nn.Conv2d(8, 8, 3, stride=2), (2, 8, 12, 12)),  # many channels
        (nn.Conv2d(3, 3, 3, stride=2, groups=3), (2, 3, 12, 12)),
        (nn.Conv2d(3, 8, 3, stride=2), (2, 3, 13, 12)),  # an odd size has no last block
        (nn.Conv2d(3, 8, 3, stride=2, dilation=2), (2, 3, 12, 12)),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect"), (2, 3, 12, 12)),
    ],
)
def test_others_are_written_as_they_are(conv: nn.Conv2d, shape: tuple[int, ...]) -> None:
    _, blocks, _ = _models(conv, shape)
    assert _strides(blocks) == list(conv.stride)
