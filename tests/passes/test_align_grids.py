"""Operands get the range of their result, from the end of a chain to its beginning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.passes import AlignGrids
from tests.helpers.golden import assert_rewrites
from tests.helpers.grids import output_of

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))


class Chain(nn.Module):
    """A sum of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.a(x) * 3 + self.b(x)
        return self.d(inner + self.c(x) / 5)  # type: ignore[no-any-return]


def simulated(net: nn.Module) -> QuantizationSimModel:
    torch.manual_seed(3)
    sim = QuantizationSimModel(net.eval(), X, "min_max", target="qualcomm_htp")
    sim.compute_encodings([X])
    return sim


def ends(sim: QuantizationSimModel, path: str) -> tuple[float, float]:
    quantizer = output_of(sim.model, path)
    return quantizer.min.item(), quantizer.max.item()


def test_a_chain_ends_on_the_range_of_its_last_result() -> None:
    sim = simulated(Chain())
    wanted = ends(sim, "add_1")
    others = {name: ends(sim, name) for name in ("x_stub", "d") if output_of(sim.model, name)}
    paths = ("add", "mul", "b", "div")
    assert all(ends(sim, path) != wanted for path in paths)
    outcome = AlignGrids()(sim.model)
    assert {path: ends(sim, path) for path in paths} == dict.fromkeys(paths, wanted)
    assert outcome.changes == len(paths)
    assert {name: ends(sim, name) for name in others} == others
    assert "its range is that of add_1, which cannot rescale" in sim.explain("add")
    assert "its range is that of add, which cannot rescale" in sim.explain("b")


def test_the_graph_stays_and_a_second_run_changes_nothing() -> None:
    sim = simulated(Chain())
    assert_rewrites(AlignGrids(), sim.model, """
        %x      = input
        %x_stub = QuantizedQuantStub[x_stub](%x)
        %a      = quantized_linear[a](%x_stub)
        %mul    = quantized_mul[mul](%a, 3)
        %b      = quantized_linear[b](%x_stub)
        %add    = quantized_add[add](%mul, %b)
        %c      = quantized_linear[c](%x_stub)
        %div    = quantized_div[div](%c, 5)
        %add_1  = quantized_add[add_1](%add, %div)
        %d      = quantized_linear[d](%add_1)
        return %d
    """)  # fmt: skip
    again = AlignGrids()(sim.model)
    assert not again.modified
    assert again.skips == ()


def test_only_the_operators_that_were_named() -> None:
    sim = simulated(Chain())
    before = ends(sim, "add")
    assert not AlignGrids(operators=("cat",))(sim.model).modified
    assert ends(sim, "add") == before


def test_what_cannot_be_aligned_is_logged() -> None:
    sim = simulated(Chain())
    output_of(sim.model, "mul").allow_overwrite(False)
    output_of(sim.model, "b").bitwidth = 4
    before = ends(sim, "mul"), ends(sim, "b")
    outcome = AlignGrids()(sim.model)
    reasons = {skip.node: skip.reason for skip in outcome.skips}
    assert reasons["mul"] == "its range is fixed, so add rescales it"
    assert reasons["b"].startswith("add cannot share a grid with it: it is QuantizeDequantize(")
    assert (ends(sim, "mul"), ends(sim, "b")) == before


def test_a_result_without_a_range_is_logged() -> None:
    torch.manual_seed(3)
    sim = QuantizationSimModel(Chain().eval(), X)
    outcome = AlignGrids()(sim.model)
    assert not outcome.modified
    assert {(s.node, s.reason) for s in outcome.skips} == {
        ("add", "its result has no range"), ("add_1", "its result has no range"),
    }  # fmt: skip
