"""A product with a parameter is a linear layer, in its weight, its kernel and every technique."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import (
    QuantizationSimModel,
    equalize_model,
    load_checkpoint,
    prepare_model,
    save_checkpoint,
)
from fxquant.nn.dense import Dense
from fxquant.passes import LinearProducts
from fxquant.ptq import apply_gptq, apply_seq_mse, correct_bias, reconstruct
from fxquant.quantization.tensor import plain
from fxquant.targets import load_target
from tests.helpers.golden import assert_rewrites, ready
from tests.helpers.shipped import Shipped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INNER, OUT = 12, 6


Call: TypeAlias = "Callable[[Any, Tensor], Any]"


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = values(64, INNER)


class Layer(nn.Module):
    """`weight` is `[in, out]`, `turned` the same as `[out, in]`."""

    def __init__(self, call: Call | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(values(INNER, OUT, seed=1) / 4)
        self.turned = nn.Parameter(self.weight.detach().t().clone())
        self.bias = nn.Parameter(values(OUT, seed=2) / 4)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        assert self.call is not None
        return cast("Tensor", self.call(self, x))


class Written(Layer):
    """It keeps its last output as the weight of the next call."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", values(INNER, OUT))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.state
        self.state.copy_(y[:INNER])
        return y


def test_golden_of_a_sum() -> None:
    net = Layer(lambda m, x: m.bias + x @ m.weight)
    outcome = assert_rewrites(LinearProducts(), net, """
          %x      = input
        + %matmul = linear[matmul](%x)
        + return %matmul
        - %weight = attr[weight]
        - %matmul = matmul[matmul](%x, %weight)
        - %bias   = attr[bias]
        - %add    = add[add](%bias, %matmul)
        - return %add
    """, inputs=X)  # fmt: skip
    layer = outcome.graph_module.get_submodule("matmul")
    assert isinstance(layer, Dense)
    assert layer.weight is outcome.graph_module.weight
    assert layer.bias is outcome.graph_module.bias


def test_golden_of_one_call() -> None:
    net = Layer(lambda m, x: torch.addmm(m.bias, x, m.turned.t()))
    outcome = assert_rewrites(LinearProducts(), net, """
          %x      = input
        + %addmm  = linear[addmm](%x)
        - %turned = attr[turned]
        - %t      = t[t](%turned)
        - %bias   = attr[bias]
        - %addmm  = addmm[addmm](%bias, %x, %t)
          return %addmm
    """, inputs=X)  # fmt: skip
    layer = outcome.graph_module.get_submodule("addmm")
    assert type(layer) is nn.Linear
    assert layer.weight is outcome.graph_module.turned


def test_golden_of_a_turned_weight() -> None:
    net = Layer(lambda m, x: F.linear(x, m.weight.T, m.bias))
    assert_rewrites(LinearProducts(), net, """
          %x         = input
        + %linear    = linear[linear](%x)
        - %weight    = attr[weight]
        - %getattr_1 = transpose[transpose](%weight, -2, -1)
        - %bias      = attr[bias]
        - %linear    = linear[linear](%x, %getattr_1, %bias)
          return %linear
    """, inputs=X)  # fmt: skip


def test_golden_of_a_weight_on_the_left() -> None:
    net = Layer(lambda m, x: m.turned @ x.reshape(-1, INNER, 4))
    assert_rewrites(LinearProducts(), net, """
          %x       = input
          %reshape = reshape[reshape](%x, -1, 12, 4)
        - %turned  = attr[turned]
        - %matmul  = matmul[matmul](%turned, %reshape)
        - return %matmul
        + %columns = transpose[columns](%reshape, -2, -1)
        + %matmul  = linear[matmul](%columns)
        + %rows    = transpose[rows](%matmul, -2, -1)
        + return %rows
    """, inputs=X)  # fmt: skip


SPELLINGS: dict[str, Call] = {
    "matmul": lambda m, x: x @ m.weight + m.bias,
    "matmul of a transposed weight": lambda m, x: torch.matmul(x, m.turned.mT) + m.bias,
    "bias first": lambda m, x: m.bias + x.matmul(m.turned.permute(1, 0)),
    "addmm": lambda m, x: rows(x, lambda y: torch.addmm(m.bias, y, m.weight)),
    "addmm of a transposed weight": lambda m, x: rows(
        x, lambda y: torch.addmm(m.bias, y, m.turned.t())
    ),
    "mm": lambda m, x: rows(x, lambda y: y.mm(m.weight) + m.bias),
    "linear": lambda m, x: F.linear(x, m.weight.t(), m.bias),
    "linear and a sum": lambda m, x: F.linear(x, m.turned) + m.bias,
    "weight on the left": lambda m, x: (m.turned @ x.mT).mT + m.bias,
    "transposed weight on the left": lambda m, x: (m.weight.t() @ x.mT).mT + m.bias,
}


def rows(x: Tensor, call: Callable[[Tensor], Any]) -> Any:
    return call(x.reshape(-1, INNER)).reshape(*x.shape[:-1], OUT)


class Reference(Layer):
    """The layer as a module, between functions that are the same for all spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INNER, OUT)
        self.layer.weight, self.layer.bias = self.turned, self.bias

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.layer(x))


def simulated(net: nn.Module, x: Tensor, bits: int, **options: Any) -> QuantizationSimModel:
    sim = QuantizationSimModel(net.eval(), x, default_param_bw=bits, **options)
    sim.compute_encodings([x])
    return sim


def weight_quantizers(sim: QuantizationSimModel) -> list[Any]:
    found = [m.param_quantizers._modules.get("weight") for m in sim.qmodules()]
    return [q for q in found if q is not None]


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, (64,)) for name in SPELLINGS]
    + [(name, (8, 8)) for name in ("matmul", "addmm", "linear", "weight on the left")],
)
def test_each_spelling_is_the_linear_layer(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Bits, channels, steps, kernels and values are those of the module."""
    x = values(*shape, INNER)
    sim, known = simulated(Layer(SPELLINGS[name]), x, 6), simulated(Reference(), x, 6)
    (found,), (wanted,) = weight_quantizers(sim), weight_quantizers(known)
    assert (found.bitwidth, found.symmetric) == (6, wanted.symmetric)
    assert torch.equal(found.get_scale().flatten(), wanted.get_scale().flatten())
    assert "weights    1 int6" in str(sim)
    y, exact = plain(sim.model(x)).detach(), plain(known.model(x)).detach()
    # the same integers, summed in float32 in another order
    bound = 32 * 2.0**-24 * float(exact.abs().max())
    if "on the left" in name:  # a transpose stands before the sum, whose bias stays float
        layer: Any = known.model.layer
        step = layer.param_quantizers["bias"].get_encodings().scale
        bound += float(step.max()) / 2
    assert float((y - exact).abs().max()) <= bound
    proof = sim.export(tmp_path, "net", x)
    assert proof.proven
    floats = {row.operator for row in proof.float_operators}
    assert floats <= {"Reshape", "Transpose", "Add"}
    assert ("Add" in floats) == ("on the left" in name)
    for (shipped,) in Shipped(tmp_path / "net.onnx").run([x]):
        assert float((torch.from_numpy(shipped) - exact).abs().max()) <= 2 * bound


TECHNIQUES: dict[str, Callable[..., Any]] = {
    "reconstruct": reconstruct,
    "gptq": apply_gptq,
    "seq_mse": apply_seq_mse,
    "bias correction": correct_bias,
}


class Two(nn.Module):
    """Two layers, as functions or as modules."""

    def __init__(self, *, functions: bool) -> None:
        super().__init__()
        first, second = values(INNER, 32, seed=1) / 4, values(32, OUT, seed=2) / 4
        self.functions = functions
        self.call: Any = F.gelu
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        self.bias = nn.Parameter(values(32, seed=3) / 4)
        self.a, self.b = nn.Linear(INNER, 32), nn.Linear(32, OUT, bias=False)
        self.a.weight, self.b.weight = (
            nn.Parameter(first.t().clone()),
            nn.Parameter(second.t().clone()),
        )
        self.a.bias = self.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.functions:
            inner = self.call(torch.addmm(self.bias, x, self.first))
            return cast("Tensor", inner @ self.second)
        return cast("Tensor", self.b(self.call(self.a(x))))


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("bits", [3, 4])
def test_techniques_choose_the_integers_of_the_module(technique: str, bits: int) -> None:
    batches = [values(64, INNER, seed=seed) for seed in range(3)]
    found = []
    for functions in (True, False):
        sim = QuantizationSimModel(
            Two(functions=functions).eval(), batches[0], default_param_bw=bits
        )
        sim.compute_encodings(batches)
        TECHNIQUES[technique](sim, batches)
        layers = [m for m in sim.qmodules() if m.param_quantizers._modules.get("weight")]
        with torch.no_grad():
            integers = [m.param_quantizers["weight"](m.weight).quantize() for m in layers]
        if functions:
            assert [type(m).float_class for m in layers] == [Dense, Dense]
            integers = [i.t() for i in integers]
        found.append(([plain(i) for i in integers], plain(sim.model(batches[0])).detach()))
    (ours, y), (theirs, exact) = found
    assert all(map(torch.equal, ours, theirs))
    assert torch.allclose(y, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


def test_what_trains_is_the_parameter_that_the_user_has() -> None:
    sim = simulated(Two(functions=True), X, 4)
    net: Any = sim.model
    parameters = dict(net.named_parameters())
    assert {"first", "second", "bias"} <= set(parameters)
    assert not {"addmm.weight", "addmm.bias", "matmul.weight"} & set(parameters)
    assert net.addmm.weight is net.first
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    before = net.first.detach().clone()
    net.train()
    plain(net(X)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(net.first, before)


def test_blocks_lie_along_the_inputs(tmp_path: Path) -> None:
    sim = simulated(Two(functions=True), X, 4)
    sim.set_blockwise_quantization_for_weights("*", 4, True, 4)
    sim.compute_encodings([X])
    first, second = weight_quantizers(sim)
    assert (tuple(first.shape), tuple(second.shape)) == ((INNER // 4, 32), (32 // 4, OUT))
    assert sim.export(tmp_path, "net", X).proven


REASONS = {
    "a value of another call": (Written, "the network writes into what it multiplies with"),
    "types": (
        lambda: Layer(lambda m, x: F.linear(x.double(), m.weight.double().t())),
        None,
    ),
    "a bias that is computed": (
        lambda: Layer(lambda m, x: F.linear(x, m.weight.t(), m.bias * 2)),
        "what it adds is no vector that is stored",
    ),
    "a matrix that is added": (
        lambda: Layer(lambda m, x: torch.addmm(x[:, :OUT], x, m.weight)), None,
    ),
    "a vector on the right": (
        lambda: Layer(lambda m, x: m.turned @ x[0]),
        "a vector is no row of a linear layer's input here",
    ),
    "a vector on the left": (
        lambda: Layer(lambda m, x: m.bias @ x.reshape(-1, OUT, 2)),
        "what it has on the left is no matrix",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REASONS)
def test_what_is_left_alone(case: str) -> None:
    make, reason = REASONS[case]
    gm = ready(make().eval(), LinearProducts.needs, X)
    outcome = LinearProducts()(gm)
    assert not outcome.modified
    assert [s.reason for s in outcome.skips] == ([] if reason is None else [reason])


def test_a_product_that_is_read_twice_takes_no_bias() -> None:
    def call(m: Any, x: Tensor) -> Tensor:
        y = x @ m.weight
        return cast("Tensor", (y + m.bias) * y)

    gm = ready(Layer(call).eval(), LinearProducts.needs, X)
    exact = gm(X)
    assert LinearProducts()(gm).modified
    assert gm.get_submodule("matmul").bias is None
    assert torch.allclose(gm(X), exact, atol=1e-5)


def test_a_module_of_another_class_takes_no_bias() -> None:
    """Its forward may never look at one."""

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return F.linear(input, self.weight) * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.bias = Doubled(INNER, OUT, bias=False), nn.Parameter(values(OUT))

        def forward(self, x: Tensor) -> Tensor:
            return cast("Tensor", self.layer(x) + self.bias)

    gm = prepare_model(Net().eval(), X, modules_to_exclude=["layer"])
    exact = gm(X)
    assert not LinearProducts()(gm).modified
    assert torch.equal(gm(X), exact)


def test_a_chip_without_products_has_linear_layers() -> None:
    target = load_target("amd_aie2")
    assert target.operators.get("matmul") is None
    sim = simulated(Two(functions=True), X, 8, target=target)
    assert len(weight_quantizers(sim)) == 2


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    sim = simulated(Two(functions=True), X, 4)
    reconstruct(sim, [X])
    model: Any = sim.model
    save_checkpoint(sim, tmp_path / "kept")
    assert {"first", "second", "bias", "addmm.weight", "matmul.weight"} <= set(
        sim.model.state_dict()
    )
    other = QuantizationSimModel(Two(functions=True).eval(), X, default_param_bw=4)
    load_checkpoint(other, tmp_path / "kept")
    again: Any = other.model
    assert torch.equal(plain(again(X)), plain(model(X)))
    assert again.addmm.weight is again.first


class Added(nn.Module):
    """A module without a bias, and a parameter that the network adds to what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(INNER, 32, bias=False), nn.Linear(32, OUT)
        self.layer.weight = nn.Parameter(values(32, INNER) * torch.logspace(-1, 1, 32)[:, None])
        self.bias = nn.Parameter(values(32, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.out((self.layer(x) + self.bias).relu()))


@pytest.mark.parametrize("net", [Added, lambda: Two(functions=True)], ids=["sum", "functions"])
def test_equalization_scales_the_parameters_of_the_network(net: Callable[[], nn.Module]) -> None:
    """It goes on through the network's own parameters; a bias that it adds is not added twice."""
    model: Any = net().eval()
    if isinstance(model, Two):  # a GELU is not homogeneous
        model.call = F.relu
        model.first.data *= torch.logspace(-1, 1, 32)
    before, names = model(X).detach(), set(model.state_dict())
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert equalize_model(model, dummy_input=X).changed
    assert set(model.state_dict()) == names
    assert not torch.equal(model.bias, weights["bias"])
    assert torch.allclose(model(X), before, rtol=0, atol=1e-5 * float(before.abs().max()))


def test_a_head_that_is_the_table_is_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(20, INNER), nn.Linear(INNER, INNER)

        def forward(self, i: Tensor) -> Tensor:
            y: Tensor = self.layer(self.table(i)).relu()
            return y @ self.table.weight.t()

    torch.manual_seed(0)
    tokens = torch.randint(0, 20, (16, 5))
    sim = simulated(Tied(), tokens, 8)
    table, head = sim.model.get_submodule("table"), sim.model.get_submodule("matmul")
    assert head.weight is table.weight
    assert head.param_quantizers["weight"] is table.param_quantizers["weight"]  # type: ignore[index]
    assert sim.export(tmp_path, "net", tokens).proven
    stored = onnx.load(tmp_path / "net.onnx").graph.initializer
    assert [tuple(t.dims) for t in stored].count((20, INNER)) == 1
    assert (INNER, 20) not in {tuple(t.dims) for t in stored}


@pytest.mark.parametrize("weight", [(1, 5, 4), (1, 1, 5, 4)])
@pytest.mark.parametrize("given", [(3, 5), (2, 3, 5)])
def test_axes_of_one_are_kept(weight: tuple[int, ...], given: tuple[int, ...]) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(weight))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w

    x = torch.randn(given)
    sim = QuantizationSimModel(Wide().eval(), x)
    sim.compute_encodings([x])
    assert sim.model(x).shape == Wide()(x).shape
