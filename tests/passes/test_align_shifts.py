"""Positions become coarser until a chip can shift as far as they ask; what is fixed stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.passes import AlignShifts
from fxquant.placement.shift_constraints import find_shifts
from fxquant.targets import Shifts
from tests.helpers.golden import assert_rewrites
from tests.helpers.grids import output_of, param_of

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    """Two layers and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.end = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.a(x) + self.b(x))  # type: ignore[no-any-return]


@pytest.fixture
def sim() -> QuantizationSimModel:
    """All positions known: 4 for values, 6 for weights, 7 for biases."""
    torch.manual_seed(3)
    made = QuantizationSimModel(Net().eval(), X, target="amd_aie2")
    made.compute_encodings([X])
    for name in ("x_stub", "a", "b", "add"):
        output_of(made.model, name).set_position(4)
    for name in ("a", "b", "end"):
        param_of(made.model, name, "weight").set_position(6)
        param_of(made.model, name, "bias").set_position(7)
    return made


def positions(sim: QuantizationSimModel) -> dict[str, int]:
    found = {n: output_of(sim.model, n) for n in ("x_stub", "a", "b", "add")}
    found |= {f"{n}.{p}": param_of(sim.model, n, p) for n in "ab" for p in ("weight", "bias")}
    return {name: int(q.get_position()) for name, q in found.items()}


@pytest.mark.parametrize(
    ("limits", "moved"),
    [
        # cut = 6 + 4 - 4 = 6
        (Shifts(cut=(0, 5)), {"a.weight": 5, "b.weight": 5}),
        (Shifts(cut=(0, 6)), {}),
        (Shifts(cut=(6, 9)), {}),
        # to the left: a coarser output of a and of b, and of end, whose output is not asked for
        (Shifts(cut=(7, 9)), {"a": 3, "b": 3, "add": 4}),
        # bias = 6 + 4 - 7 = 3
        (Shifts(bias=(0, 2)), {"a.bias": 8, "b.bias": 8}),
        (Shifts(bias=(4, 9)), {"a.bias": 6, "b.bias": 6}),
        # read = 4 - 4, write = 4 - 4
        (Shifts(read=(0, 0), write_add=(0, 0)), {}),
        (Shifts(write_add=(1, 3)), {"add": 3}),
        (Shifts(write_add=(-3, -1)), {"add": 5}),
    ],
)
def test_only_what_does_not_fit_moves(
    sim: QuantizationSimModel, limits: Shifts, moved: dict[str, int]
) -> None:
    before = positions(sim)
    outcome = AlignShifts(limits=limits)(sim.model)
    assert positions(sim) == before | moved
    assert outcome.modified or not moved
    assert all(shift.fits for shift in find_shifts(sim.model, limits) if shift.node.name != "end")


def test_the_finer_operand_of_a_sum_moves(sim: QuantizationSimModel) -> None:
    output_of(sim.model, "a").set_position(9)
    AlignShifts(limits=Shifts(read=(0, 2)))(sim.model)
    assert positions(sim)["a"] == 6
    assert positions(sim)["b"] == 4
    assert "shift read was 5: a position moved by -3" in sim.explain("add")


def test_the_graph_stays(sim: QuantizationSimModel) -> None:
    assert_rewrites(AlignShifts(limits=Shifts(cut=(0, 5))), sim.model, """
        %x      = input
        %x_stub = QuantizedQuantStub[x_stub](%x)
        %a      = quantized_linear[a](%x_stub)
        %b      = quantized_linear[b](%x_stub)
        %add    = quantized_add[add](%a, %b)
        %end    = quantized_linear[end](%add)
        return %end
    """)  # fmt: skip


def test_what_is_fixed_stays_and_is_logged(sim: QuantizationSimModel) -> None:
    for name in ("a", "b", "end"):
        param_of(sim.model, name, "weight").allow_overwrite(False)
    before = positions(sim)
    outcome = AlignShifts(limits=Shifts(cut=(0, 5)))(sim.model)
    assert positions(sim) == before
    assert not outcome.modified
    reasons = {skip.reason for skip in outcome.skips if skip.node == "a"}
    assert reasons == {"shift cut is 6, but the range is fixed", "shift cut is 6, allowed (0, 5)"}
