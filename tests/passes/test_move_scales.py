"""A number that scales an operand of a product goes behind the product, and there into a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.graph.pytree import tensors
from fxquant.nn import DeQuantStub, QuantStub
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.session import Level, open_session, packed
from fxquant.passes import MoveScales
from tests.helpers.golden import assert_rewrites, ready

Q, K = torch.randn(2, 5, 8), torch.randn(2, 8, 7)


class Scores(nn.Module):
    """Attention scores with the scale on the queries, on the scores, or not at all."""

    def __init__(self, where: str, number: float = 0.3) -> None:
        super().__init__()
        self.where, self.number = where, number

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        if self.where == "queries":
            q = q * self.number
        found = torch.matmul(q, k)
        if self.where == "divided":
            found = found / self.number
        return (found * self.number if self.where == "scores" else found).softmax(-1)


def test_golden() -> None:
    assert_rewrites(MoveScales(), Scores("queries").eval(), """
          %q       = input
          %k       = input
        - %mul     = mul[mul](%q, ·)
        - %matmul  = matmul[matmul](%mul, %k)
        + %matmul  = matmul[matmul](%q, %k)
        + %mul_1   = mul[mul](%matmul, ·)
        - %softmax = softmax[softmax](%matmul)
        + %softmax = softmax[softmax](%mul_1)
          return %softmax
    """, inputs=(Q, K))  # fmt: skip


class Twice(nn.Module):
    """The scaled value is read elsewhere too."""

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q = q * 0.3
        return torch.matmul(q, k), q


def test_what_is_read_twice_or_negative_stays() -> None:
    for net in (Twice(), Scores("queries", -0.3)):
        gm = ready(net.eval(), MoveScales.needs, (Q, K))
        assert not MoveScales()(gm).modified


def _simulated(net: nn.Module) -> QuantizationSimModel:
    sim = QuantizationSimModel(net.eval(), (Q, K), quant_scheme="min_max")
    sim.compute_encodings([(Q, K)])
    return sim


@pytest.mark.parametrize("where", ["queries", "scores", "divided"])
@pytest.mark.parametrize("number", [0.125, 0.3])
def test_the_runtime_multiplies_by_the_step(where: str, number: float) -> None:
    sim = _simulated(Scores(where, number))
    model = lower(sim.model, sim.example).model
    assert not {"Mul", "Div"} & {node.op_type for node in model.graph}
    feeds = {"q": Q.numpy(), "k": K.numpy()}
    with torch.no_grad():
        wanted = sim.model(Q, K).numpy()
    for level in (Level.OFF, Level.ALL):
        with packed(model) as source:
            (found,) = open_session(source, level).run(feeds).values()
        # scores up to 40: 8 products, their factors and the number are rounded, a dozen roundings,
        # and an error in an exponent is a relative error of a result below one
        assert float(np.abs(found - wanted).max()) <= 2 * 12 * 40 * np.finfo(np.float32).eps


def test_what_the_graph_returns_keeps_its_value() -> None:
    class Both(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Any:
            scores = torch.matmul(q, k)
            return scores, scores * 0.5

    sim = _simulated(Both())
    kinds = [node.op_type for node in lower(sim.model, sim.example).model.graph]
    assert "Mul" in kinds


class Odd(nn.Module):
    """Products that nearly match."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, q: Tensor, k: Tensor) -> Any:
        scaled = q * (-0.3 if self.kind == "negative" else 0.3)
        if self.kind == "itself":
            square = (k[:, :, :5] * 0.3)[:, :5].contiguous()
            return torch.matmul(square, square)
        moved = scaled.contiguous()
        found = torch.matmul(moved, k)
        return (found, moved) if self.kind == "twice" else found


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("negative", "-0.3 is no positive number"),
        ("twice", "contiguous is also read by output"),
        ("itself", "matmul multiplies it with itself"),
    ],
)
def test_near_misses_leave_a_reason(kind: str, reason: str) -> None:
    gm = ready(Odd(kind).eval(), MoveScales.needs, (Q, K))
    want = gm(Q, K)
    outcome = MoveScales()(gm)
    assert not outcome.modified
    assert [s.reason for s in outcome.skips] == [reason]
    for a, b in zip(tensors(gm(Q, K)), tensors(want), strict=True):
        assert torch.equal(a, b)


def test_a_scale_moves_through_what_moves_values() -> None:
    gm = ready(Odd("plain").eval(), MoveScales.needs, (Q, K))
    want = gm(Q, K)
    outcome = MoveScales()(gm)
    assert outcome.modified
    assert outcome.skips == ()
    torch.testing.assert_close(gm(Q, K), want)


def test_no_scale_moves_across_the_boundary_of_a_region() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = QuantStub(), DeQuantStub()

        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            inside = self.dequant(torch.matmul(self.quant(q) * 0.5, self.quant(k)))
            return torch.matmul(inside * 0.3, k.transpose(1, 2))

    gm = ready(Part().eval(), MoveScales.needs, (Q, K))
    outcome = MoveScales()(gm)
    assert outcome.modified
    assert [(s.node, s.reason) for s in outcome.skips] == [
        ("mul_1", "it lies outside of the quantized regions")
    ]
