"""Weights that are computed from parameters in every call are parameters in a simulation."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel, prepare_model
from fxquant.errors import CheckpointError
from fxquant.passes import FoldComputedWeights
from fxquant.ptq import reconstruct
from fxquant.quantization.tensor import plain
from tests.helpers.golden import assert_rewrites
from tests.helpers.shipped import Shipped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INNER, OUT = 12, 6
Call: TypeAlias = "Callable[[Any, Tensor], Any]"


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = values(64, INNER)


class Net(nn.Module):
    """Parameters and buffers; `call` computes with them."""

    mask: Tensor
    order: Tensor

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.weight = nn.Parameter(values(OUT, INNER, seed=1) / 4)
        self.scale = nn.Parameter(values(OUT, 1, seed=2).exp())
        self.up, self.down = (nn.Parameter(values(*s, seed=3) / 4) for s in ((OUT, 3), (3, INNER)))
        self.kernel = nn.Parameter(values(4, 3, 3, 3, seed=4) / 4)
        self.bias = nn.Parameter(values(OUT, seed=5) / 4)
        self.register_buffer("mask", (values(4, 3, 3, 3, seed=6) > 0).float())
        self.register_buffer("order", torch.randperm(OUT, generator=torch.Generator()))
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.call(self, x))


def test_golden_of_a_masked_kernel() -> None:
    net = Net(lambda m, x: F.conv2d(x, m.kernel * m.mask, padding=1))
    outcome = assert_rewrites(FoldComputedWeights(), net, """
          %x      = input
          %kernel = attr[kernel]
          %mask   = attr[mask]
          %mul    = mul[mul](%kernel, %mask)
        - %conv2d = conv2d[conv2d](%x, %mul, padding=1)
        + %conv2d = conv2d[conv2d](%x)
          return %conv2d
    """, inputs=values(2, 3, 8, 8))  # fmt: skip
    layer = outcome.graph_module.get_submodule("conv2d")
    assert type(layer) is nn.Conv2d
    assert layer.padding == (1, 1)
    assert torch.equal(layer.weight, net.kernel * net.mask)
    assert layer.weight.requires_grad
    assert not hasattr(outcome.graph_module, "computed")


# the weight `[out, in]` that each computes with, and the call
SPELLINGS: dict[str, tuple[Call, Callable[[Any], Tensor]]] = {
    "scaled": (lambda m, x: F.linear(x, m.weight * m.scale, m.bias), lambda m: m.weight * m.scale),
    "standardized": (
        lambda m, x: F.linear(x, (m.weight - m.weight.mean(1, keepdim=True)) / m.weight.std()),
        lambda m: (m.weight - m.weight.mean(1, keepdim=True)) / m.weight.std(),
    ),
    "low rank": (
        lambda m, x: x @ (m.weight + m.up @ m.down).t(), lambda m: m.weight + m.up @ m.down,
    ),
    "a part": (lambda m, x: F.linear(x, m.weight[:4]), lambda m: m.weight[:4]),
    "a chunk": (lambda m, x: x @ m.weight.t().chunk(2, 1)[1], lambda m: m.weight[3:]),
    "joined": (
        lambda m, x: x @ torch.cat([m.weight, m.down]).t(),
        lambda m: torch.cat([m.weight, m.down]),
    ),
    "normalized": (
        lambda m, x: F.linear(x, F.normalize(m.weight)), lambda m: F.normalize(m.weight),
    ),
    "softmax": (lambda m, x: x @ m.weight.t().softmax(0), lambda m: m.weight.softmax(1)),
    "reordered": (lambda m, x: F.linear(x, m.weight[m.order]), lambda m: m.weight[m.order]),
    "einsum": (
        lambda m, x: torch.einsum("bi,oi->bo", x, m.weight * m.scale),
        lambda m: m.weight * m.scale,
    ),
    "reshaped": (
        lambda m, x: x @ m.weight.reshape(INNER, OUT), lambda m: m.weight.view(INNER, OUT).t(),
    ),
}  # fmt: skip


def simulated(net: nn.Module, x: Tensor, bits: int) -> QuantizationSimModel:
    sim = QuantizationSimModel(net.eval(), x, default_param_bw=bits)
    sim.compute_encodings([x])
    return sim


@pytest.mark.parametrize("name", SPELLINGS)
def test_each_is_the_layer_with_the_computed_weight(name: str, tmp_path: Path) -> None:
    """Bits, integers, techniques and kernels are those of a module with this weight."""
    call, weight = SPELLINGS[name]
    net = Net(call)
    matrix = weight(net).detach()
    known = nn.Linear(INNER, len(matrix), bias="bias" in str(call.__code__.co_names))
    known.weight = nn.Parameter(matrix.clone())
    if known.bias is not None:
        known.bias = net.bias
    found = []
    for each in (net, nn.Sequential(known)):
        sim = simulated(each, X, 6)
        reconstruct(sim, [X])
        (layer,) = [m for m in sim.qmodules() if m.param_quantizers._modules.get("weight")]
        quantizer: Any = layer.param_quantizers["weight"]
        assert quantizer.bitwidth == 6
        integers = plain(quantizer(layer.weight).quantize())
        found.append((integers if len(integers) == len(matrix) else integers.t(), sim))
    (ours, sim), (theirs, other) = found
    assert torch.equal(ours, theirs)
    y, exact = (plain(s.model(X)).detach() for s in (sim, other))
    bound = 32 * 2.0**-24 * float(exact.abs().max())  # sums in another order
    assert float((y - exact).abs().max()) <= bound
    proof = sim.export(tmp_path, "net", X)
    assert proof.proven
    assert not proof.float_operators
    stored = [i for i in onnx.load(tmp_path / "net.onnx").graph.initializer if len(i.dims) == 2]
    assert [i.data_type for i in stored] == [onnx.TensorProto.INT8]
    for (shipped,) in Shipped(tmp_path / "net.onnx").run([X]):
        assert float((torch.from_numpy(shipped) - exact).abs().max()) <= 2 * bound


def test_the_prepared_model_computes_it_and_trains_what_it_is_made_of() -> None:
    net = Net(SPELLINGS["scaled"][0])
    prepared = prepare_model(net.eval(), X)
    sim = simulated(prepared, X, 8)
    assert list(prepared.state_dict()) == list(net.state_dict())
    prepared(X).sum().backward()
    assert prepared.get_parameter("scale").grad is not None
    why = str(sim.explain("linear"))
    assert "its weight, which is computed from parameters, was folded into a parameter" in why


def test_a_blur_of_every_channel_is_a_convolution() -> None:
    x = values(8, 3, 8, 8)
    net = Net(lambda m, x: F.conv2d(x, m.mask[:1, :1].repeat(3, 1, 1, 1), groups=3))
    sim = simulated(net, x, 8)
    layer = sim.model.get_submodule("conv2d")
    assert isinstance(layer, nn.Conv2d)
    assert "weight" in layer._buffers
    assert "weights    1 int8" in str(sim)
    exact = net(x).detach()
    error = (plain(sim.model(x)).detach() - exact).square().mean() / exact.square().mean()
    assert error < 1e-3  # eight bits, clipped by the default ranges


def test_one_value_is_one_parameter() -> None:
    """A layer that is called twice computes its weight twice."""
    net = Net(lambda m, x: x @ (m.weight * m.scale).t() + x.neg() @ (m.weight * m.scale).t())
    gm = prepare_model(net.eval(), X)
    FoldComputedWeights()(gm)
    reads = [n.target for n in gm.graph.find_nodes(op="get_attr")]
    assert reads.count("computed.value") == 1


class Kept(Net):
    """It keeps a mean of what it reads, and scales its weight with it."""

    def forward(self, x: Tensor) -> Tensor:
        self.mask.copy_(x.mean().expand_as(self.mask))
        return F.linear(x, self.weight * self.mask[:1, 0, 0, :1])


LEFT: dict[str, Callable[[], nn.Module]] = {
    "of the input": lambda: Net(lambda m, x: F.linear(x, m.weight * x.mean())),
    "of random numbers": lambda: Net(lambda m, x: F.linear(x, m.weight * torch.rand_like(m.scale))),
    "dropped out": lambda: Net(lambda m, x: F.linear(x, F.dropout(m.weight, training=m.training))),
    "a parameter": lambda: Net(lambda m, x: x @ m.weight.t().contiguous()),
    "no weight": lambda: Net(lambda m, x: x[:, :1] * (m.weight * m.scale)[:1]),
    "of what is written": lambda: Kept(lambda m, x: x),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_alone(case: str) -> None:
    gm = prepare_model(LEFT[case]().eval(), X)
    assert not FoldComputedWeights()(gm).modified


def test_a_product_that_would_take_more_memory_stays() -> None:
    net = Net(lambda m, x: x @ (m.down.t()[:, :1] @ m.down[:1]).repeat(1, 6000))
    gm = prepare_model(net.eval(), X)
    outcome = FoldComputedWeights()(gm)
    assert not outcome.modified
    assert outcome.skips[0].reason == "its weight has 864000 elements, computed from 36"


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_weight_with_a_trained_adapter_is_left_alone(frozen: bool) -> None:
    net = Net(lambda m, x: F.linear(x, m.weight + m.up @ m.down, m.bias))
    net.weight.requires_grad_(not frozen)
    sim = QuantizationSimModel(net.eval(), X)
    sim.compute_encodings([X])
    cast("Tensor", sim.model(X)).sum().backward()
    parameters = dict(sim.model.named_parameters())
    assert ("up" in parameters and parameters["up"].grad is not None) is frozen
    assert ("linear.weight" in parameters) is not frozen
    assert ("only some are trained" in str(sim.explain("linear"))) is frozen


def test_a_weight_that_a_batch_norm_standardises_has_its_bits() -> None:
    def standardised(m: Any, x: Tensor) -> Tensor:
        flat = m.kernel.reshape(1, 4, -1)
        kernel = F.batch_norm(flat, None, None, training=True, momentum=0.0).reshape_as(m.kernel)
        return F.conv2d(x, kernel)

    x = values(8, 3, 6, 6)
    sim = QuantizationSimModel(Net(standardised).eval(), x, default_param_bw=3)
    sim.compute_encodings([x])
    layer: Any = sim.model.get_submodule("conv2d")
    assert plain(layer.param_quantizers["weight"](layer.weight)).unique().numel() <= 8 * 4


class Two(nn.Module):
    """Layers whose weights are computed from tensors of their own, with equal values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(values(6, INNER, seed=1) / 4)
        self.other = nn.Parameter(self.weight.detach().clone())
        self.fixed = nn.Parameter(self.weight.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.linear(x, self.weight * 2), F.linear(x, self.other * 2)
        return first - second.relu() + F.linear(x, self.fixed * 2)


def test_equal_values_of_other_tensors_are_other_parameters() -> None:
    sim = simulated(Two(), X, 8)
    layers: list[Any] = [sim.model.get_submodule(n) for n in ("linear", "linear_1", "linear_2")]
    assert len({id(layer.weight) for layer in layers}) == 3
    assert [layer.weight.requires_grad for layer in layers] == [True, True, False]
    cast("Tensor", sim.model(X)).sum().backward()
    assert not torch.equal(layers[0].weight.grad, -layers[1].weight.grad)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: F.linear(x, m.scale * m.weight) @ (m.weight * 2),
        lambda m, x: F.linear(x, m.scale * m.weight) + m.scale.sum(),
        lambda m, x: F.linear(x, m.scale * m.weight) * (m.scale * m.weight)[:, 0],
    ],
)
def test_what_is_trained_elsewhere_too_is_not_torn_apart(call: Call) -> None:
    net = Net(call)
    sim = QuantizationSimModel(net.eval(), X, default_output_bw=16)
    sim.compute_encodings([X])
    cast("Tensor", sim.model(X)).sum().backward()
    net(X).sum().backward()
    parameters = dict(sim.model.named_parameters())
    for name in ("weight", "scale"):
        found, wanted = parameters[name].grad, net.get_parameter(name).grad
        assert found is not None
        assert wanted is not None
        assert float((found - wanted).norm() / wanted.norm()) < 1e-2  # 16-bit grids


def test_what_nothing_reads_is_not_trained_and_loading_it_is_refused() -> None:
    net = Net(lambda m, x: F.linear(x, m.scale * m.weight))
    sim = simulated(net, X, 8)
    left = {n for n, p in sim.model.named_parameters() if not p.requires_grad}
    assert {"weight", "scale"} <= left
    state = net.state_dict()
    sim.model.load_state_dict(state, strict=False)
    state["scale"] = state["scale"] * 2
    for model in (sim.model, copy.deepcopy(sim.model)):
        with pytest.raises(CheckpointError, match=r"FXQ625.*'scale'"):
            model.load_state_dict(state, strict=False)
