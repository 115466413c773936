"""A reconstruction that is killed goes on behind the layers it had finished, with equal bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.ptq import ReconstructionOptions, reconstruct
from fxquant.ptq.layer_problem import LayerProblem

if TYPE_CHECKING:
    from pathlib import Path

SETUP = """
import torch
from torch import nn
from fxquant import QuantizationSimModel
from fxquant.ptq import ReconstructionOptions, reconstruct

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.ReLU(), nn.Flatten(),
    nn.Linear(128, 6), nn.Linear(6, 4),
).eval()
batches = list(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(16))
sim = QuantizationSimModel(model, batches[0], "min_max", 8, 4)
sim.compute_encodings(batches)
"""
KILLED = """
import os, signal, sys

def killed(done, total):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

reconstruct(sim, batches, ReconstructionOptions(folder=sys.argv[1]), progress=killed)
"""


def prepared() -> tuple[QuantizationSimModel, list[Tensor]]:
    found: dict[str, Any] = {}
    exec(SETUP, found)
    return found["sim"], found["batches"]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the layers that are solved, as it happens."""
    solved: list[str] = []
    real = LayerProblem.solve

    def solve(self: Any, grid: Any) -> Any:
        solved.append(self.layer.path)
        return real(self, grid)

    monkeypatch.setattr(LayerProblem, "solve", solve)
    return solved


def state(sim: QuantizationSimModel) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in sim.model.state_dict().items()}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal")
def test_after_a_kill_it_goes_on_and_ends_with_equal_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim, batches = prepared()
    third = next(i for i, n in enumerate(sim.model.graph.nodes) if str(n.target) == "5")
    command = [sys.executable, "-c", SETUP + KILLED, str(tmp_path), str(third)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2

    whole, _ = prepared()
    want = reconstruct(whole, batches)
    solved = counted(monkeypatch)
    found = reconstruct(sim, batches, ReconstructionOptions(folder=tmp_path))
    assert sorted(set(solved)) == ["5", "6"]
    assert not list(tmp_path.iterdir())
    mine, theirs = state(sim), state(whole)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)
    for a, b in zip(found.layers, want.layers, strict=True):
        assert (a.path, a.changed, a.loss_after, a.error_after) == (
            b.path, b.changed, b.loss_after, b.error_after
        )  # fmt: skip
    frozen = [q.overwritable for _, q in sim.named_quantizers()]
    assert frozen == [q.overwritable for _, q in whole.named_quantizers()]


def stopped(sim: QuantizationSimModel, batches: list[Tensor], folder: Path) -> None:
    """Reconstruct until the first layers are done."""

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(sim, batches, ReconstructionOptions(folder=folder), progress=stop)


def test_other_data_models_and_options_do_not_go_on_and_damage_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim, batches = prepared()
    stopped(sim, batches, tmp_path)
    (left,) = tmp_path.iterdir()
    assert sorted(p.name for p in left.iterdir()) == ["0.safetensors", "1.safetensors"]
    (left / "1.safetensors").write_bytes(b"damaged")
    solved = counted(monkeypatch)
    for change in ("data", "options", "model"):
        sim, batches = prepared()
        given = ReconstructionOptions(folder=tmp_path, seed=int(change == "options"))
        if change == "data":
            batches[0] += 1
        if change == "model":
            with torch.no_grad():
                sim.model.get_parameter("6.weight")[0, 0] += 1
        solved.clear()
        reconstruct(sim, batches, given)
        assert sorted(set(solved)) == ["0", "2", "5", "6"], change
    sim, batches = prepared()
    solved.clear()
    reconstruct(sim, batches, ReconstructionOptions(folder=tmp_path))
    assert sorted(set(solved)) == ["2", "5", "6"]
    assert not list(tmp_path.iterdir())
    whole, _ = prepared()
    reconstruct(whole, batches)
    mine, theirs = state(sim), state(whole)
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_a_layer_that_is_better_as_it_was_stays_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(64, 8)]

    def made() -> QuantizationSimModel:
        first, last = nn.Linear(8, 4, bias=False), nn.Linear(4, 4, bias=False)
        with torch.no_grad():  # on the grid already
            first.weight.copy_(torch.eye(4, 8))
            last.weight.copy_(torch.eye(4))
        model = nn.Sequential(first, nn.ReLU(), last)
        sim = QuantizationSimModel(model.eval(), batches[0], "min_max", 8, 8)
        sim.compute_encodings(batches)
        return sim

    first = made()
    stopped(first, batches, tmp_path)
    again = made()
    report = reconstruct(again, batches, ReconstructionOptions(folder=tmp_path))
    whole = made()
    want = reconstruct(whole, batches)
    assert [r.changed for r in report.layers] == [r.changed for r in want.layers]
    for a, b in zip(again.named_quantizers(), whole.named_quantizers(), strict=True):
        assert a[1].overwritable == b[1].overwritable
    mine, theirs = state(again), state(whole)
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)
