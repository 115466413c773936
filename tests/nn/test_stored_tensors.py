"""Tensors that are registered under several names: what is theirs, and what a state dict says."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fxquant import QuantizationSimModel
from fxquant.ptq import reconstruct
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 8


class Products(nn.Module):
    """Products with parameters and a buffer, one of them read twice."""

    frozen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias = (
            nn.Parameter(torch.randn(SIZE, 16) / 3),
            nn.Parameter(torch.randn(16)),
        )
        self.heads, self.turned = (nn.Parameter(torch.randn(*s) / 3) for s in ((4, 2, 6), (4, 16)))
        self.register_buffer("frozen", torch.randn(4, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear((x @ self.first + self.bias).relu(), self.turned) @ self.frozen
        return torch.einsum("bi,ihd->bhd", y, self.heads)


class Called(nn.Module):
    """Modules that are called again, a weight that two have, and one that is a parameter too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(SIZE, SIZE) for _ in range(3))
        self.b.weight = self.a.weight
        self.cell = nn.LSTMCell(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.c(x).relu()
        h, c = self.cell(x)
        h, c = self.cell(self.a(x), (h, c))
        y: Tensor = self.b(h) @ self.a.weight.t()
        return y


class Attention(nn.Module):
    """Layers of PyTorch whose functions are called with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(SIZE, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(SIZE, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None].expand(-1, 3, -1)
        y: Tensor = self.layer(self.attention(x, x, x)[0])
        return y


@pytest.mark.parametrize("kind", [Products, Called, Attention])
def test_the_original_model_has_the_names_of_the_network(
    kind: Callable[[], nn.Module], tmp_path: Path
) -> None:
    """Its weights, changed by a technique, go into the author's network and back, strictly."""
    torch.manual_seed(0)
    net, x = kind().eval(), torch.randn(32, SIZE)
    names = list(net.state_dict())
    sim = QuantizationSimModel(copy.deepcopy(net), x, default_param_bw=4)
    sim.compute_encodings([x])
    assert sim.export(tmp_path, "net", x).proven
    assert sorted(load_file(tmp_path / "net.safetensors")) == sorted(names)
    reconstruct(sim, [x])
    original = sim.get_original_model()
    assert sorted(original.state_dict()) == sorted(names)
    net.load_state_dict(original.state_dict())
    exact = original(x).detach()
    bound = 1e-5 * float(exact.abs().max())  # sums in another order
    assert torch.allclose(net(x), exact, rtol=0, atol=bound)
    fresh, again = kind().eval(), copy.deepcopy(original)
    again.load_state_dict(fresh.state_dict())
    assert torch.allclose(again(x), fresh(x), rtol=0, atol=bound)


def test_weights_on_their_grids_are_so_under_every_name() -> None:
    torch.manual_seed(0)
    net, x = Products().eval(), torch.randn(32, SIZE)
    sim = QuantizationSimModel(net, x, default_param_bw=3)
    sim.compute_encodings([x])
    rounded: Any = sim.get_original_model(qdq_weights=True)
    assert rounded.first is rounded.matmul.weight
    assert rounded.frozen is rounded.matmul_1.weight
    layer: Any = sim.model.get_submodule("matmul")
    assert torch.equal(rounded.first, plain(layer.param_quantizers["weight"](layer.weight)))
    assert len(rounded.first.unique()) > 4
    assert not torch.equal(rounded.first, net.first)


class Normed(nn.Module):
    """A weight norm, which gives any weight, and a spectral norm, which does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Linear(SIZE, SIZE))
        self.b = parametrizations.spectral_norm(nn.Linear(SIZE, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu())
        return y


def test_norms_of_weights_compute_them_again() -> None:
    torch.manual_seed(0)
    net, x = Normed().eval(), torch.randn(32, SIZE)
    sim = QuantizationSimModel(copy.deepcopy(net), x, default_param_bw=4)
    sim.compute_encodings([x])
    before = sim.get_original_model()
    for name, value in net.state_dict().items():  # to the bit
        assert torch.equal(before.state_dict()[name], value)
    assert before.state_dict().keys() == net.state_dict().keys()
    assert torch.equal(before(x), net(x))
    model = sim.model
    with torch.no_grad():
        for path in ("a", "b"):
            model.get_submodule(path).get_parameter("weight").add_(0.1 * torch.randn(SIZE, SIZE))
    after = sim.get_original_model()
    weight, wanted = (m.get_submodule("a").weight for m in (after, model))
    assert isinstance(weight, Tensor)
    assert isinstance(wanted, Tensor)
    assert torch.allclose(weight, wanted, rtol=1e-6, atol=0.0)
    assert "a.parametrizations.weight.original1" in after.state_dict()
    assert "b.weight" in after.state_dict()  # its norm is no longer one
    again = QuantizationSimModel(after, x, default_param_bw=4)
    again.compute_encodings([x])
    assert again.model.get_submodule("a").get_parameter("weight").requires_grad
