"""Training goes on in another process as if it had never stopped, to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel, load_checkpoint, save_checkpoint

ROOT = Path(__file__).parent.parent


def simulation() -> QuantizationSimModel:
    """A small network, always the same."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)
    )
    return QuantizationSimModel(net.eval(), batch(0)[0])


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels of one step."""
    g = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 8, 8, generator=g), torch.randint(0, 4, (8,), generator=g)


def optimizer_for(sim: QuantizationSimModel, name: str) -> torch.optim.Optimizer:
    """An optimizer with a state."""
    kinds: dict[str, Any] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        "adam": lambda p: torch.optim.AdamW(p, lr=1e-3),
    }
    made: torch.optim.Optimizer = kinds[name](sim.model.parameters())
    return made


def train(sim: QuantizationSimModel, optimizer: torch.optim.Optimizer, steps: range) -> list[str]:
    """Losses of some steps, exactly."""
    sim.model.train()
    losses = []
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(sim.model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()).hex())
    return losses


def resume(folder: str, name: str) -> None:
    """What the other process does; it writes losses and outputs."""
    torch.set_num_threads(1)
    sim = simulation()
    load_checkpoint(sim, Path(folder) / "checkpoint")
    sim.model.eval()
    with torch.no_grad():
        torch.save(sim.model(batch(99)[0]).as_subclass(Tensor), Path(folder) / "outputs.pt")
    optimizer = optimizer_for(sim, name)
    optimizer.load_state_dict(torch.load(Path(folder) / "optimizer.pt", weights_only=True))
    losses = train(sim, optimizer, range(5, 10))
    (Path(folder) / "losses.json").write_text(json.dumps(losses))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_training_resumes_in_another_process(name: str, tmp_path: Path) -> None:
    sim = simulation()
    sim.compute_encodings([batch(0)[0]])
    optimizer = optimizer_for(sim, name)
    train(sim, optimizer, range(5))
    sim.model.eval()
    save_checkpoint(sim, tmp_path / "checkpoint")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with torch.no_grad():
        outputs = sim.model(batch(99)[0])
    want = train(sim, optimizer, range(5, 10))
    code = f"from tests.test_resume import resume; resume({str(tmp_path)!r}, {name!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert torch.equal(torch.load(tmp_path / "outputs.pt", weights_only=True), outputs)
    assert json.loads((tmp_path / "losses.json").read_text()) == want
    assert len(set(want)) == 5, "training changes something"
