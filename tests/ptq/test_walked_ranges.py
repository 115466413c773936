"""Ranges of activations of few bits are chosen along a reconstruction; ranges somebody set stay."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, Target
from fxquant.errors import CalibrationError
from fxquant.ptq import engine
from fxquant.ptq.activation_ranges.walked_ranges import WalkedRanges
from fxquant.ptq.engine import ReconstructionOptions, reconstruct
from fxquant.quantization.affine import AffineQuantizer


class Net(nn.Module):
    """Values with long tails, a sum, and two values with one grid."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.last = nn.Linear(256, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + self.second(x)
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.last(x[:, :, ::2, ::2].flatten(1))  # type: ignore[no-any-return]


def data(seed: int, count: int = 64) -> list[Tensor]:
    x = torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed))
    x = x + x.flip(1)
    return list((x * x.abs()).split(16))


def simulation(
    bits: int = 4, target: Target | str = "onnxruntime_x86"
) -> tuple[nn.Module, QuantizationSimModel]:
    torch.manual_seed(0)
    model = Net().eval()
    batches = data(1)
    sim = QuantizationSimModel(model, batches[0], "min_max", bits, 4, target=target)
    sim.compute_encodings(batches)
    return model, sim


def activations(sim: QuantizationSimModel) -> dict[str, AffineQuantizer]:
    named = sim.named_quantizers()
    return {n: q for n, q in named if isinstance(q, AffineQuantizer) and "output" in n}


def ends(sim: QuantizationSimModel) -> dict[str, tuple[float, float]]:
    return {n: (float(q.min), float(q.max)) for n, q in activations(sim).items()}


@torch.no_grad()
def sqnr(model: nn.Module, sim: QuantizationSimModel) -> float:
    pairs = [(model(x), sim.model(x).as_subclass(Tensor)) for x in data(2, 256)]
    exact, found = (torch.cat(values) for values in zip(*pairs, strict=True))
    return float(10 * torch.log10(exact.square().sum() / (exact - found).square().sum()))


def test_outputs_on_other_data_are_better_by_far() -> None:
    model, plain = simulation()
    reconstruct(plain, data(1), ReconstructionOptions(activation_ranges=False))
    _, sim = simulation()
    before = ends(sim)
    report = reconstruct(sim, data(1))
    assert sqnr(model, sim) > sqnr(model, plain) + 1.2
    changed = {r.name for r in report.ranges if r.changed}
    assert changed == {n for n, now in ends(sim).items() if now != before[n]}
    assert all(r.cost_after < 0.9 * r.cost_before for r in report.ranges if r.changed)
    assert f"{len(changed)} of {len(report.ranges)} ranges" in str(report)
    # what is no calibration's range any more is left alone
    again, now = reconstruct(sim, data(1)), ends(sim)
    assert changed.isdisjoint(r.name for r in again.ranges)
    assert {n: now[n] for n in changed} == {r.name: r.after for r in report.ranges if r.changed}


def test_ranges_that_cost_more_at_the_outputs_are_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def clip(self: WalkedRanges, node: Any, *_: Any) -> None:
        if node in self.grids:
            self.grids[node].set_range(-0.1, 0.1)
            clipped.append(node)

    clipped: list[Any] = []
    _, plain = simulation()
    want = reconstruct(plain, data(1), ReconstructionOptions(activation_ranges=False))
    monkeypatch.setattr(WalkedRanges, "choose", clip)
    _, sim = simulation()
    found = reconstruct(sim, (batch for batch in data(1)))
    assert len(clipped) == len(activations(sim)) - 1  # one is of several values
    mine, theirs = sim.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert [r.error_after for r in found.layers] == [r.error_after for r in want.layers]


@pytest.mark.parametrize("bits", [7, 8])
def test_ranges_of_more_bits_stay(bits: int) -> None:
    _, sim = simulation(bits)
    before = ends(sim)
    assert not reconstruct(sim, data(1)).ranges
    assert ends(sim) == before


def test_ranges_that_somebody_set_and_shared_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_CLEARLY", math.inf)  # what is chosen stays
    _, sim = simulation()
    before = ends(sim)
    free = {r.name for r in reconstruct(sim, data(1)).ranges}
    # the operands of the concatenation and its result have one grid
    assert before.keys() - free == {"left.output_quantizers.0"}
    _, sim = simulation()
    frozen, set_by_hand, half, *_ = sorted(n for n in free if before[n][0] < 0)
    given = activations(sim)
    given[frozen].allow_overwrite(False)
    given[set_by_hand].set_range(-1.0, 2.0)
    given[half].allow_overwrite(min=False)
    want = ends(sim)
    reports = {r.name: r for r in reconstruct(sim, data(1)).ranges}
    assert reports.keys() == free - {frozen, set_by_hand}
    now = ends(sim)
    assert (now[frozen], now[set_by_hand]) == (want[frozen], want[set_by_hand])
    assert now[half][0] == want[half][0]
    assert now[half][1] < want[half][1]


def test_powers_of_two_stay_as_they_are() -> None:
    rule = {"bitwidth": 8, "signed": True, "symmetric": True}
    target = Target.model_validate({
        "name": "shifting", "description": "a chip that shifts", "scale": "power_of_two",
        "activation": rule, "weight": rule, "absorbs": ["relu"],
        "operators": {"conv2d": {"output": "required"}, "linear": {"output": "required"}},
    })  # fmt: skip
    _, sim = simulation(4, target)
    before = ends(sim)
    assert before
    assert not reconstruct(sim, data(1)).ranges
    assert ends(sim) == before


def test_one_sample_and_values_that_are_all_zero() -> None:
    _, sim = simulation()
    with torch.no_grad():
        sim.model.get_parameter("left.weight").zero_()
        sim.model.get_parameter("left.bias").zero_()
    sim.compute_encodings([data(1)[0][:1]])
    report = reconstruct(sim, [data(1)[0][:1]])
    assert any(r.changed for r in report.ranges)
    assert all(torch.isfinite(torch.tensor(r.after)).all() for r in report.ranges)


class Selected(nn.Module):
    """Values choose the rows, in the middle and at the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 8] -> [M, 4]."""
        h = torch.relu(self.a(x))
        y = self.c(torch.relu(self.b(h[h[:, 0] > 0.1])))
        return y[y[:, 0] > 0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_values_choose(seed: int) -> None:
    """Rounded values choose other rows in some batches; those cannot be compared."""
    torch.manual_seed(seed)
    batches = [torch.randn(16, 8) for _ in range(6)]
    sim = QuantizationSimModel(
        Selected().eval(), batches[0], default_param_bw=4, default_output_bw=4
    )
    sim.compute_encodings(batches)
    report = reconstruct(sim, batches)
    assert [layer.path for layer in report.layers] == ["a", "b", "c"]
    assert all(layer.error_after <= layer.error_before for layer in report.layers)


def test_rows_that_are_never_the_same_are_an_error() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    sim = QuantizationSimModel(Selected().eval(), x, default_param_bw=4, default_output_bw=4)
    sim.compute_encodings([x])
    with pytest.raises(CalibrationError, match="values choose the rows of b") as caught:
        reconstruct(sim, [x])
    assert caught.value.code == "FXQ428"
