"""A weight that is several matrices has a grid for each of their channels, and is solved for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import onnx
import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, load_checkpoint, save_checkpoint
from fxquant.nn.dense import Dense
from fxquant.ptq import (
    apply_gptq,
    apply_seq_mse,
    correct_bias,
    reconstruct,
)
from fxquant.ptq.layers.columns import product_of
from fxquant.quantization.tensor import plain
from tests.helpers.shipped import Shipped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

G, D, OUT = 3, 10, 6
Call: TypeAlias = "Callable[[Any, Tensor], Any]"


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Matrices(nn.Module):
    """Matrices whose channels are of different sizes, and a bias for each of them."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.weight = nn.Parameter(values(G, D, OUT, seed=1) * values(G, 1, OUT, seed=2).exp() / 4)
        self.bias = nn.Parameter(values(G, 1, OUT, seed=3) / 4)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.call(self, x))


class Grouped(nn.Module):
    """The same as a convolution."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv1d(G * D, G * OUT, 1, groups=G, bias=False)
        self.conv.weight = nn.Parameter(weight.mT.reshape(G * OUT, D, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.conv(x))


SPELLINGS: dict[str, tuple[Call, tuple[int, ...]]] = {
    "bmm": (lambda m, x: torch.bmm(x, m.weight), (G, 8, D)),
    "matmul": (lambda m, x: x @ m.weight, (G, 8, D)),
    "more axes": (lambda m, x: x @ m.weight, (4, G, 8, D)),
    "one input for all": (lambda m, x: x @ m.weight, (8, D)),
    "baddbmm": (lambda m, x: torch.baddbmm(m.bias, x, m.weight), (G, 8, D)),
    "heads": (lambda m, x: torch.einsum("bnd,nde->bne", x, m.weight), (8, G, D)),
    "experts": (lambda m, x: torch.einsum("nbd,ndo->nbo", x, m.weight), (G, 8, D)),
    "transposed": (lambda m, x: x @ m.weight.mT.contiguous().mT, (G, 8, D)),
}


def simulated(net: nn.Module, x: Tensor, bits: int = 8, **options: Any) -> QuantizationSimModel:
    sim = QuantizationSimModel(net.eval(), x, default_param_bw=bits, **options)
    sim.compute_encodings([x])
    return sim


def layer_of(sim: QuantizationSimModel) -> Any:
    (found,) = [m for m in sim.qmodules() if isinstance(m, Dense)]
    return found


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_tensor_and_a_step_for_every_channel_of_each_matrix(name: str, tmp_path: Path) -> None:
    call, shape = SPELLINGS[name]
    x = values(*shape, seed=5)
    sim = simulated(Matrices(call), x, quant_scheme="min_max")
    layer = layer_of(sim)
    scale = layer.param_quantizers["weight"].get_scale()
    assert tuple(scale.shape) == (G, 1, OUT)
    assert torch.allclose(scale, layer.weight.abs().amax(1, keepdim=True) / 127.5, rtol=5e-3)
    assert "per matrix and channel" in str(
        sim.explain(next(p for p, m in sim.named_qmodules() if m is layer))
    )
    proof = sim.export(tmp_path, "net", x)
    assert proof.proven
    assert not [row for row in proof.float_operators if row.operator == "MatMul"]
    stored = {tuple(i.dims) for i in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert {(G, D, OUT), (G, 1, OUT)} <= stored
    exact = plain(sim.model(x)).detach()
    integers = plain(sim.integer_model()(x))
    for (shipped,) in Shipped(tmp_path / "net.onnx").run([x]):
        assert float((torch.from_numpy(shipped) - exact).abs().max()) <= 1e-5
        assert float((torch.from_numpy(shipped) - integers).abs().max()) <= 1e-5
    older = sim.export(tmp_path, "older", x, opset=17)  # which has no blocks: side by side
    assert older.proven
    stored = {tuple(i.dims) for i in onnx.load(tmp_path / "older.onnx").graph.initializer}
    assert {(D, G * OUT), (G * OUT,)} <= stored


TECHNIQUES: dict[str, Callable[..., Any]] = {
    "reconstruct": reconstruct,
    "gptq": apply_gptq,
    "seq_mse": apply_seq_mse,
}


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_techniques_choose_the_integers_of_a_grouped_convolution(technique: str) -> None:
    x = values(200, G, D, seed=5) @ values(D, D, seed=6)
    net = Matrices(lambda m, x: torch.bmm(x.transpose(0, 1), m.weight))
    sim = simulated(net, x, 3)
    report = TECHNIQUES[technique](sim, [x])
    given = x.reshape(200, G * D, 1)
    known = simulated(Grouped(net.weight.detach()), given, 3)
    TECHNIQUES[technique](known, [given])
    layers: list[Any] = [layer_of(sim), known.model.get_submodule("conv")]
    found, wanted = (m.param_quantizers["weight"](m.weight).quantize() for m in layers)
    assert torch.equal(plain(found), plain(wanted).reshape(G, OUT, D).mT)
    assert not getattr(report, "skipped", {})


def test_a_solution_is_stored_where_the_network_has_the_parameter(tmp_path: Path) -> None:
    x = values(G, 200, D, seed=5) @ values(D, D, seed=6)
    net = Matrices(SPELLINGS["bmm"][0])
    exact = net(x).detach()
    sim = simulated(net, x, 3)

    def error(sim: QuantizationSimModel) -> float:
        return float((plain(sim.model(x)).detach() - exact).square().mean())

    nearest = error(sim)
    reconstruct(sim, [x])
    model: Any = sim.model
    assert error(sim) < nearest / 1.5
    assert model.weight is layer_of(sim).weight
    assert not correct_bias(sim, [x]).layers
    save_checkpoint(sim, tmp_path / "kept")
    other = QuantizationSimModel(Matrices(SPELLINGS["bmm"][0]).eval(), x, default_param_bw=3)
    load_checkpoint(other, tmp_path / "kept")
    assert error(other) == error(sim)


@pytest.mark.parametrize("target", ["qualcomm_htp", "generic_pof2"])
def test_other_targets_have_one_grid(target: str) -> None:
    x = values(G, 8, D, seed=5)
    sim = simulated(Matrices(SPELLINGS["bmm"][0]), x, target=target)
    assert layer_of(sim).param_quantizers["weight"].get_scale().numel() == 1
    report = reconstruct(sim, [x])
    assert not report.skipped


@pytest.mark.parametrize("axes", [(2, 3, 4, 5), (1, 3, 4, 5), (3, 4, 5), (4, 5)])
@pytest.mark.parametrize("batch", [(3,), (2, 3), (2, 1)])
def test_rows_are_those_of_each_matrix(axes: tuple[int, ...], batch: tuple[int, ...]) -> None:
    x, weight = values(*axes), nn.Parameter(values(*batch, axes[-1], 6, seed=1))
    layer = Dense(weight, batch=range(len(batch)))
    product = product_of(layer)
    assert product is not None
    try:
        y = layer(x).detach()
    except RuntimeError:  # sizes that do not fit
        assert (axes, batch) == ((3, 4, 5), (2, 1))
        return
    every = torch.arange(product.positions(y))
    rows, outputs = product.inputs(x, y, every), product.outputs(y, every)
    matrix = product.matrix(weight.detach())
    assert torch.allclose(rows @ matrix.mT, outputs, atol=1e-5)
    assert torch.equal(product.weight(matrix, weight.shape), weight)
    assert product.same_rows(x, y)
    by_channels = product.by_channels(y).reshape(-1, product.groups, 6)
    assert torch.equal(by_channels.transpose(0, 1), outputs)
