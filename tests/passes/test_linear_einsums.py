"""An einsum with a parameter is a linear layer, and its weight is one, however many axes it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.passes import LinearEinsums
from fxquant.ptq import correct_bias, reconstruct
from fxquant.quantization.tensor import plain
from tests.helpers.golden import assert_rewrites, ready
from tests.helpers.shipped import Shipped

if TYPE_CHECKING:
    from pathlib import Path


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Sum(nn.Module):
    """An einsum of its input, a parameter and, if it is asked to, what a layer makes of it."""

    def __init__(self, equation: str, *shape: int, gates: int = 0) -> None:
        super().__init__()
        self.equation = equation
        self.weight = nn.Parameter(values(*shape, seed=1) / 3)
        self.gate = nn.Linear(6, gates) if gates else None

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return torch.einsum(self.equation, x, self.weight)
        return torch.einsum(self.equation, x, self.weight, self.gate(x).softmax(-1))


class Multiplied(nn.Module):
    """A product with several matrices, or with a vector."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(values(*shape, seed=1) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_golden_of_experts() -> None:
    outcome = assert_rewrites(LinearEinsums(), Sum("bi,eio,be->bo", 4, 6, 5, gates=4), """
          %x         = input
          %gate      = linear[gate](%x)
          %softmax   = softmax[softmax](%gate)
        - %weight    = attr[weight]
        + %linear    = linear[linear](%x)
        + %unflatten = unflatten[unflatten](%linear)
        - %einsum    = einsum[einsum]('bi,eio,be->bo', %x, %weight, %softmax)
        + %einsum    = einsum[einsum]('beo,be->bo', %unflatten, %softmax)
          return %einsum
    """, inputs=values(16, 6))  # fmt: skip
    net: Any = outcome.graph_module
    assert net.linear.weight is net.weight


def test_golden_of_heads() -> None:
    assert_rewrites(LinearEinsums(), Sum("bphd,hdm->mbp", 2, 3, 5), """
          %x       = input
        - %weight  = attr[weight]
        - %einsum  = einsum[einsum]('bphd,hdm->mbp', %x, %weight)
        - return %einsum
        + %flatten = flatten[flatten](%x)
        + %linear  = linear[linear](%flatten)
        + %permute = permute[permute](%linear, 2, 0, 1)
        + return %permute
    """, inputs=values(4, 7, 2, 3))  # fmt: skip


X2, X3, X4 = (6,), (5, 6), (3, 5, 6)
#: equation, shape of the parameter, shape of the input but for its first axis
EQUATIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "bi,io->bo": ((6, 4), X2),
    "bi,oi->bo": ((4, 6), X2),
    "bli,io->blo": ((6, 4), X3),
    "bli,io->bol": ((6, 4), X3),
    "...i,oi->...o": ((4, 6), X4),
    "b...i,io->b...o": ((6, 4), X4),
    "bil,io->blo": ((5, 4), X3),
    "bi,eio->beo": ((2, 6, 4), X2),
    "bpm,hmd->bphd": ((2, 6, 4), X3),
    "bpm,mhd->bphd": ((6, 2, 4), X3),
    "bphd,hdm->bpm": ((5, 6, 4), X4),
    "bphd,dhm->bpm": ((6, 5, 4), X4),
    "bphd,mhd->bpm": ((4, 5, 6), X4),
    "bli,i->bl": ((6,), X3),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_sum_is_a_layer_with_a_step_for_each_output(equation: str, tmp_path: Path) -> None:
    """Steps and values are those of the matrix; onnxruntime computes it in integers."""
    shape, given = EQUATIONS[equation]
    net, x = Sum(equation, *shape).eval(), values(8, *given)
    gm = ready(net, LinearEinsums.needs, x)
    exact = net(x).detach()
    assert LinearEinsums()(gm).modified
    bound = 32 * 2.0**-24 * float(exact.abs().max())
    assert float((gm(x).detach() - exact).abs().max()) <= bound
    sim = QuantizationSimModel(net, x, default_param_bw=7)
    sim.compute_encodings([x])
    assert "weights    1 int7" in str(sim)
    (layer,) = (m for m in sim.qmodules() if m.param_quantizers._modules.get("weight"))
    outputs = equation.partition("->")[2].replace("...", "")
    letters = equation.partition(",")[2].partition("->")[0]
    wanted = tuple(n if c in outputs else 1 for c, n in zip(letters, shape, strict=True))
    assert tuple(layer.param_quantizers["weight"].shape) == (wanted if len(shape) > 1 else ())
    proof = sim.export(tmp_path, "net", x)
    assert proof.proven
    assert {row.operator for row in proof.integer_operators} & {"Gemm", "MatMul"}
    assert {row.operator for row in proof.float_operators} <= {"Reshape", "Transpose", "Squeeze"}
    y = plain(sim.model(x)).detach()
    for (shipped,) in Shipped(tmp_path / "net.onnx").run([x]):
        assert float((torch.from_numpy(shipped) - y).abs().max()) <= bound


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "case",
    [
        (Sum("ebi,eio->ebo", 4, 6, 5), (4, 8, 6)),
        (Sum("bei,eoi->beo", 4, 5, 6), (8, 4, 6)),
        (Sum("bi,eio,be->bo", 4, 6, 5, gates=4), (8, 6)),
        (Multiplied(4, 6, 5), (8, 4, 3, 6)),
        (Multiplied(1, 6, 5), (8, 3, 6)),
        (Multiplied(6), (8, 3, 6)),
    ],
    ids=["batch", "batch of turned", "experts", "matrices", "one matrix", "vector"],
)
def test_bits_of_every_parameter_are_those_of_weights(
    case: tuple[nn.Module, tuple[int, ...]], bits: int, tmp_path: Path
) -> None:
    net, x = case[0].eval(), values(*case[1])
    sim = QuantizationSimModel(net, x, default_param_bw=bits)
    sim.compute_encodings([x])
    count = 1 + (getattr(net, "gate", None) is not None)
    assert f"weights    {count} int{bits}" in str(sim)
    proof = sim.export(tmp_path, "net", x)
    assert proof.proven
    if bits == 8:
        assert proof.integer_macs_share == 1
    exact = net(x).detach()
    error = (plain(sim.model(x)).detach() - exact).square().mean() / exact.square().mean()
    # each bit is worth 6 dB, and one step of so few weights is as good for all as for one
    assert -10 * torch.log10(error) > 6 * bits - 10


class Matrix(nn.Module):
    """The same layer as a module."""

    def __init__(self, net: Sum) -> None:
        super().__init__()
        heads, inner, size = net.weight.shape
        self.layer = nn.Linear(inner, heads * size, bias=False)
        matrix = net.weight.detach().transpose(1, 2).reshape(heads * size, inner)
        self.layer.weight = nn.Parameter(matrix.clone())

    def forward(self, x: Tensor) -> Tensor:
        y: Any = self.layer(x)
        return cast("Tensor", y.unflatten(-1, (3, 8)))


@pytest.mark.parametrize("technique", [reconstruct, correct_bias])
def test_techniques_choose_the_integers_of_the_matrix(technique: Any) -> None:
    net = Sum("bi,eio->beo", 3, 12, 8)
    batches = [values(64, 12, seed=seed) for seed in range(3)]
    found = []
    for model in (net, Matrix(net)):
        sim = QuantizationSimModel(model.eval(), batches[0], default_param_bw=3)
        sim.compute_encodings(batches)
        technique(sim, batches)
        found.append(plain(sim.model(batches[0])).detach())
    ours, theirs = found
    assert not torch.equal(ours, net(batches[0]))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_blocks_are_stored_along_the_inputs(tmp_path: Path) -> None:
    net, x = Sum("bphd,hdm->bpm", 2, 8, 5).eval(), values(8, 3, 2, 8)
    sim = QuantizationSimModel(net, x, default_param_bw=4)
    sim.compute_encodings([x])
    sim.set_blockwise_quantization_for_weights("*", 4, True, 4)
    sim.compute_encodings([x])
    (layer,) = (m for m in sim.qmodules() if m.param_quantizers._modules.get("weight"))
    assert tuple(layer.param_quantizers["weight"].shape) == (2, 2, 5)
    assert sim.export(tmp_path, "net", x).proven


def test_encodings_come_back(tmp_path: Path) -> None:
    net, x = Sum("bi,eio->beo", 3, 12, 8).eval(), values(64, 12)
    sim = QuantizationSimModel(net, x, default_param_bw=4)
    sim.compute_encodings([x])
    sim.export(tmp_path, "net", x)
    other = QuantizationSimModel(net, x, default_param_bw=4)
    other.load_encodings(tmp_path / "net.encodings")
    assert torch.equal(plain(other.model(x)), plain(sim.model(x)))


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("bi,bi->b", (8, 6)),  # nothing but pairs
        ("bi,io->b", (6, 4)),  # the outputs are summed
        ("bi,i->bi", (6,)),  # nothing is summed
        ("ii,io->io", (6, 4)),  # a diagonal
    ],
)
def test_what_is_no_product_is_left_alone(equation: str, shape: tuple[int, ...]) -> None:
    x = values(6, 6) if equation.startswith("ii") else values(8, 6)
    gm = ready(Sum(equation, *shape).eval(), LinearEinsums.needs, x)
    assert not LinearEinsums()(gm).modified


class Called(nn.Module):
    """Another function that sums products of its input and parameters."""

    def __init__(self, call: Any, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        found = (values(*s, seed=i) / 3 for i, s in enumerate(shapes))
        self.weights = nn.ParameterList(nn.Parameter(w) for w in found)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.call(x, *self.weights))


FUNCTIONS: dict[str, tuple[Any, tuple[tuple[int, ...], ...]]] = {
    "inner": (torch.inner, ((4, 6),)),
    "inner of a vector": (lambda x, w: x.inner(w), ((6,),)),
    "tensordot": (lambda x, w: torch.tensordot(x, w, 1), ((6, 4),)),
    "tensordot of two axes": (torch.tensordot, ((5, 6, 4),)),
    "tensordot of given axes": (
        lambda x, w: torch.tensordot(x, w, dims=([-1, 1], [0, 2])), ((6, 4, 5),),
    ),
    "tensordot of a parameter": (lambda x, w: torch.tensordot(w, x, ([1], [2])), ((4, 6),)),
    "multi_dot": (lambda x, a, b: torch.linalg.multi_dot([x[:, 0], a, b]), ((6, 3), (3, 4))),
    "multi_dot to a vector": (lambda x, a, b: torch.linalg.multi_dot([x[0], a, b]), ((6, 3), (3,))),
    "mv": (lambda x, w: x[0].mv(w), ((6,),)),
    "vecdot": (torch.linalg.vecdot, ((6,),)),
    "linalg.matmul": (torch.linalg.matmul, ((6, 4),)),
    "implicit": (lambda x, w: torch.einsum("zbi, ia", x, w), ((6, 4),)),
    "sublists": (lambda x, w: torch.einsum(x, [0, 1, 2], w, [2, 3], [0, 1, 3]), ((6, 4),)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_sums_of_products_are_layers_too(name: str, tmp_path: Path) -> None:
    call, shapes = FUNCTIONS[name]
    net, x = Called(call, *shapes).eval(), values(8, 5, 6, seed=7)
    exact = net(x).detach()
    sim = QuantizationSimModel(net, x, default_param_bw=7)
    floats = plain(sim.get_original_model()(x)).detach()
    assert floats.shape == exact.shape
    assert float((floats - exact).abs().max()) <= 32 * 2.0**-24 * float(exact.abs().max())
    sim.compute_encodings([x])
    assert f"weights    {len(shapes)} int7" in str(sim)
    if name in ("inner", "tensordot of given axes", "multi_dot"):
        assert sim.export(tmp_path, "net", x).integer_macs_share == 1


def test_functions_that_are_none_stay() -> None:
    """Two inputs, and axes that are not the same for both."""
    calls: list[Any] = [
        lambda x, w: torch.tensordot(x, x * w, ([1, 2], [1, 2])),
        lambda x, w: torch.linalg.vecdot(x, w.expand(5, 6), dim=1),
    ]
    for call in calls:
        gm = ready(Called(call, (6,)).eval(), LinearEinsums.needs, values(8, 5, 6))
        assert not LinearEinsums()(gm).modified
