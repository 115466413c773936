"""Errors of nodes: their own, those accumulated in their results, and the noise at the outputs."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxquant import QuantizationSimModel
from fxquant.errors import CalibrationError, ConfigError, UncalibratedError
from fxquant.inspection.node_errors import NodeErrors, node_errors
from fxquant.nn.modes import evaluating
from fxquant.ptq.engine import reconstruct

IMAGES = torch.randn(64, 3, 10, 10, generator=torch.Generator().manual_seed(3))


class _Residual(nn.Module):
    """A sum of two branches, of which one is pooled away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.fc = nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv1(x))
        y = y + self.conv2(y)
        return self.fc(y.mean((2, 3)))  # type: ignore[no-any-return]


def _sim(bits: int = 4) -> QuantizationSimModel:
    torch.manual_seed(0)
    sim = QuantizationSimModel(_Residual().eval(), IMAGES[:4], "min_max", default_param_bw=bits)
    sim.compute_encodings([IMAGES])
    return sim


def _values(sim: QuantizationSimModel, only: str | None = None, *, every: bool = False) -> Any:
    """Values of all nodes by name with the quantizers of one module, of none, or of all."""
    kept: dict[str, Any] = {}

    class Keep(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            kept[n.name] = super().run_node(n)
            return kept[n.name]

    with ExitStack() as stack, torch.no_grad(), evaluating(sim.model):
        for path, module in sim.named_qmodules():
            if path != only and not every:
                stack.enter_context(module._remove_all_quantizers())
        Keep(sim.model, garbage_collect_values=False).run(IMAGES)
    return kept


def _db(exact: Tensor, found: Tensor) -> float:
    noise = (found.double() - exact.double()).square().sum()
    return 10 * math.log10(float(exact.double().square().sum() / noise))


@pytest.fixture(scope="module")
def found() -> NodeErrors:
    return node_errors(_sim(), IMAGES.split(16), samples=None)


def test_own_and_cumulative_errors_are_those_of_the_node_alone_and_of_all(
    found: NodeErrors,
) -> None:
    sim = _sim()
    exact, simulated = _values(sim), _values(sim, every=True)
    for row in found.rows:
        if row.local_db is not None:
            alone = _values(sim, row.module)
            assert row.local_db == pytest.approx(_db(exact[row.node], alone[row.node]), abs=1e-3)
        assert row.cumulative_db == pytest.approx(
            _db(exact[row.node], simulated[row.node]), abs=1e-3
        )
    assert found.output_db == pytest.approx(_db(exact["output"], simulated["output"]), abs=1e-3)


def test_shares_of_the_noise_are_those_of_each_module_alone(found: NodeErrors) -> None:
    sim = _sim()
    exact = _values(sim)["output"]
    alone = {
        row.module: float((_values(sim, row.module)["output"] - exact).square().sum())
        for row in found.rows
        if row.noise_share is not None
    }
    total = sum(alone.values())
    assert sum(row.noise_share or 0.0 for row in found.rows) == pytest.approx(1.0)
    for row in found.rows:
        if row.noise_share is not None:
            # 64 samples with one vector of signs each: the deviation of the mean of 64 squares
            # of a normal variable is sqrt(2 / 64) = 18 %; three times that
            assert row.noise_share == pytest.approx(alone[row.module] / total, rel=0.54, abs=0.01)
    worst = found.worst(2)
    assert worst[0].module == max(alone, key=alone.__getitem__)
    assert len(worst) == 2
    assert str(found).splitlines()[2].startswith(worst[0].module)


def test_memory_is_bounded_and_batches_make_no_difference(found: NodeErrors) -> None:
    told: list[tuple[int, int]] = []
    data = ({"x": x} for x in IMAGES.split(16))  # gone through once
    again = node_errors(
        _sim(), data, samples=None, max_memory=50_000,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert again.rows == found.rows
    assert again.cost.written_bytes > 0
    assert again.cost.peak_bytes < found.cost.peak_bytes
    nodes = len(_sim().model.graph.nodes)
    assert told == [(i + 1, 4 * nodes) for i in range(4 * nodes)]
    other = node_errors(_sim(), IMAGES, samples=None, shares=False)  # one batch
    for mine, theirs in zip(found.rows, other.rows, strict=True):
        assert mine.cumulative_db == pytest.approx(theirs.cumulative_db, abs=1e-3)
        assert theirs.noise_share is None


def test_changed_weights_are_compared_with_the_float_ones() -> None:
    sim = _sim(bits=3)
    float_output = _values(sim)["output"]
    reconstruct(sim, IMAGES.split(16))
    found = node_errors(sim, IMAGES.split(16), samples=None)
    simulated = _values(sim, every=True)["output"]
    assert found.output_db == pytest.approx(_db(float_output, simulated), abs=1e-3)
    json.loads(found.to_json())


class _Odd(nn.Module):
    """Random numbers in evaluation, values and a buffer that are written, an infinite mask."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.get_buffer("calls").add_(1)
        y = torch.dropout(self.fc(x), 0.5, True)
        y[:, 0] = 0.0
        masked = y.masked_fill(y < 0, -torch.inf)
        return self.out(y), masked.argmax(1)


def test_draws_writes_and_infinite_values() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    sim = QuantizationSimModel(_Odd().eval(), x, "min_max")
    sim.compute_encodings([x])
    calls = sim.model.get_buffer("calls").clone()
    found = node_errors(sim, [x])
    assert torch.equal(sim.model.get_buffer("calls"), calls)
    rows = {row.operator: row for row in found.rows}
    # other draws in the simulation would leave some 0 dB
    assert rows["dropout"].cumulative_db is not None
    assert rows["dropout"].cumulative_db > 30
    assert rows["argmax"].cumulative_db is None
    assert all(math.isfinite(r.cumulative_db) for r in found.rows if r.cumulative_db is not None)
    assert rows["linear"].noise_share is not None


def test_wrong_data_are_refused() -> None:
    sim = _sim()
    wrong = IMAGES.clone()
    wrong[0, 0, 0, 0] = torch.nan
    with pytest.raises(CalibrationError, match=r"FXQ445.*batch 1 holds NaN"):
        node_errors(sim, [IMAGES[:4], wrong])
    with pytest.raises(CalibrationError, match="FXQ442"):
        node_errors(sim, [])
    with pytest.raises(CalibrationError, match="does not take batch 1"):
        node_errors(sim, [IMAGES[:4], torch.randn(2, 5, 10, 10)])
    with pytest.raises(ConfigError, match="FXQ296"):
        node_errors(sim, [IMAGES], samples=0)
    fresh = QuantizationSimModel(_Residual().eval(), IMAGES[:4])
    with pytest.raises(UncalibratedError, match="FXQ401"):
        node_errors(fresh, [IMAGES])
