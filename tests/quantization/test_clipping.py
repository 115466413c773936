"""A fixed range keeps little for the backward pass, and its gradient is that of the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fxquant import QuantizationSimModel
from fxquant.quantization import affine

if TYPE_CHECKING:
    from collections.abc import Callable


def layouts(x: Tensor) -> dict[str, Tensor]:
    return {
        "contiguous": x,
        "channels last": x.to(memory_format=torch.channels_last),
        "with gaps": torch.stack([x, x], -1)[..., 0],
        "expanded": x[:1].expand(x.shape),
        "empty": x[:0],
    }


@pytest.mark.parametrize(
    "layout", ["contiguous", "channels last", "with gaps", "expanded", "empty"]
)
@pytest.mark.parametrize("shape", [(), (5, 1, 1)])
@pytest.mark.parametrize("limit", [0.7, 9.0])
def test_the_gradient_stops_where_elements_are_clipped(
    layout: str, shape: tuple[int, ...], limit: float
) -> None:
    torch.manual_seed(0)
    q = affine.QuantizeDequantize(shape, 4).requires_grad_(requires_grad=False)
    q.set_range(-limit, limit * 1.1)
    leaf = layouts(torch.randn(3, 5, 6, 7))[layout].requires_grad_()
    if leaf.numel():
        with torch.no_grad():
            leaf[0, 0, 0, 0] = torch.nan  # not clipped
    x = leaf * 1.0  # computed by an operator that keeps no result
    integers = (x / q.get_scale() - q.get_offset()).round()  # type: ignore[operator]
    clipped = (integers < q.qmin) | (integers > q.qmax)
    assert bool(clipped.any()) == (limit < 1.0 and leaf.numel() > 0)
    for g in (torch.randn(x.shape), torch.randn(x.shape)[:1].expand(x.shape)):
        (found,) = torch.autograd.grad(q(x), x, g, retain_graph=True)
        assert torch.equal(found, torch.where(clipped, 0.0, g))
        (again,) = torch.autograd.grad(q(x), x, g, create_graph=True)
        assert torch.equal(again, found)


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that the backward pass keeps beside the parameters, each memory counted once."""
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    found: dict[int, Any] = {}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage
        return saved

    with saved_tensors_hooks(keep, lambda t: t):
        model(x)
    return sum(storage.nbytes() for storage in found.values())


def convolutions() -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (3, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers)


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, 4), nn.Flatten(2), nn.Linear(36, 96), nn.LayerNorm(96),
        nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 32), nn.Tanh(), nn.Linear(32, 32),
    )  # fmt: skip


@pytest.mark.parametrize("network", [convolutions, perceptron])
@pytest.mark.parametrize(
    ("scheme", "most"), [("min_max", 1.25), ("training_range_learning_with_tf_init", 2.1)]
)
def test_what_the_backward_pass_keeps_against_floating_point(
    scheme: str, most: float, network: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    net, x = network().train(), torch.randn(8, 3, 24, 24)
    sim = QuantizationSimModel(net, x, scheme)
    sim.compute_encodings([x])
    # learned ranges need the input of every quantizer as it is, to the last bit
    assert saved_bytes(sim.model.train(), x) <= most * saved_bytes(net, x)
