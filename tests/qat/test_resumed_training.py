"""A run that was interrupted ends as one that was not: everything is equal, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import fxquant
from fxquant import QuantizationSimModel, qat
from fxquant.errors import CheckpointError
from tests.test_kills import pytestmark as needs_fork
from tests.test_kills import sweep

LEARNING = "training_range_learning_with_tf_init"

Optimizer = torch.optim.Optimizer


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(216, 4),
    ).eval()  # fmt: skip


X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def simulation(scheme: str = LEARNING, config: dict[str, Any] | None = None) -> Any:
    sim = QuantizationSimModel(net(), X, scheme, 8, 4, config=config)
    sim.compute_encodings([X])
    return sim


class Run:
    """One run: a simulation, its optimizer and its schedule."""

    def __init__(
        self,
        sim: QuantizationSimModel,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[[Optimizer], Any],
    ) -> None:
        self.sim = sim
        self.optimizer = optimizer(qat.parameter_groups(sim.model, lr=0.01, range_lr=0.05))
        self.scheduler = scheduler(self.optimizer)

    def train(self, steps: int) -> None:
        """Draws from all three generators."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            noise = torch.from_numpy(np.random.randn(8, 3, 8, 8)).float()
            labels = torch.tensor([random.randrange(4) for _ in range(8)])
            loss = nn.functional.cross_entropy(self.sim.model(X + 0.1 * noise), labels)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()

    def everything(self) -> dict[str, Any]:
        """All state there is, flat; and what is drawn next."""
        found: dict[str, Any] = dict(self.sim.model.state_dict())
        found |= _flat("optimizer", self.optimizer.state_dict())
        found |= _flat("scheduler", self.scheduler.state_dict())
        found |= {"phase": qat.phase.phase_of(self.sim.model)}
        found |= {"drawn": torch.rand(3), "numpy": np.random.rand(), "python": random.random()}
        return found


def _flat(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        parts = {f"{name}.{k}": v for k, v in value.items()}
    elif isinstance(value, (list, tuple)):
        parts = {f"{name}.{i}": v for i, v in enumerate(value)}
        parts[f"{name}.type"] = type(value).__name__
    else:
        return {name: value}
    return {k: v for n, part in parts.items() for k, v in _flat(n, part).items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            assert value.dtype == other[name].dtype, name
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def seeded() -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": lambda p: torch.optim.AdamW(p, weight_decay=0.1, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
}
SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "adam": lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
    "adamw": lambda o: lr_scheduler.OneCycleLR(o, 0.02, total_steps=20),
    "sgd": lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 5, 8]),
    "rmsprop": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.StepLR(o, 2)], [3]
    ),
}
LIVE = {"fold_batch_norms": "live"}


@pytest.mark.parametrize(
    ("name", "scheme", "config"),
    [
        ("adam", LEARNING, None),
        ("adamw", LEARNING, LIVE),
        ("sgd", "tf_enhanced", LIVE),
        ("rmsprop", "min_max", None),
    ],
)
def test_an_interrupted_run_ends_as_one_that_was_not(
    name: str, scheme: str, config: dict[str, Any] | None, tmp_path: Path
) -> None:
    def run() -> Run:
        return Run(simulation(scheme, config), OPTIMIZERS[name], SCHEDULES[name])

    whole = run()
    seeded()
    whole.sim.model.train()
    whole.train(9)
    want = whole.everything()

    first = run()
    seeded()
    first.sim.model.train()
    first.train(4)
    average = {"weights": (torch.ones(2), None), 3: float("inf"), "text": "é"}
    qat.save_training(
        tmp_path / "c", first.sim, first.optimizer, first.scheduler, step=4, extra=average
    )
    first.train(2)  # saving changed nothing, and what came later is forgotten

    second = run()
    torch.rand(5)
    state = qat.load_training(tmp_path / "c", second.sim, second.optimizer, second.scheduler)
    assert state.step == 4
    same(_flat("", state.extra), _flat("", average))
    assert second.sim.model.training
    second.train(5)
    same(second.everything(), want)


def test_saving_changes_nothing(tmp_path: Path) -> None:
    runs = [Run(simulation("min_max"), OPTIMIZERS["sgd"], SCHEDULES["sgd"]) for _ in range(2)]
    found = []
    for number, run in enumerate(runs):
        seeded()
        run.sim.model.train()
        for _ in range(4):
            run.train(1)
            if number:
                qat.save_training(tmp_path / "c", run.sim, run.optimizer, run.scheduler)
        found.append(run.everything())
    same(*found)


def test_the_phase_of_training_comes_back(tmp_path: Path) -> None:
    run = Run(simulation(config=LIVE), OPTIMIZERS["adam"], SCHEDULES["adam"])
    run.sim.model.train()
    run.train(2)
    qat.freeze_ranges(run.sim.model)
    qat.freeze_batch_norms(run.sim.model)
    qat.enable_quantizers(run.sim.model.get_submodule("5"), enabled=False)
    run.sim.model.get_parameter("5.bias").requires_grad_(False)
    qat.save_training(tmp_path / "c", run.sim, run.optimizer, run.scheduler)
    fresh = Run(simulation(config=LIVE), OPTIMIZERS["adam"], SCHEDULES["adam"])
    qat.load_training(tmp_path / "c", fresh.sim, fresh.optimizer, fresh.scheduler)
    seeded()
    run.train(3)
    want = run.everything()
    seeded()
    fresh.train(3)
    same(fresh.everything(), want)
    (part,) = (m for name, m in fresh.sim.named_qmodules() if name == "5")
    assert not part.param_quantizers["weight"].enabled


def test_groups_of_the_saved_run_count(tmp_path: Path) -> None:
    """Ranges have moved, so groups by their width are others than at the start."""
    run = Run(simulation(), OPTIMIZERS["adam"], lambda o: lr_scheduler.StepLR(o, 100))
    run.sim.model.train()
    run.train(3)
    qat.save_training(tmp_path / "c", run.sim, run.optimizer)
    sim = QuantizationSimModel(net(), X, LEARNING, 8, 4)
    fxquant.load_checkpoint(sim, tmp_path / "c")
    optimizer = torch.optim.Adam(sim.model.parameters(), lr=7.0)
    qat.load_training(tmp_path / "c", sim, optimizer)
    want = [(g["name"], g["lr"], len(g["params"])) for g in run.optimizer.param_groups]
    assert [(g["name"], g["lr"], len(g["params"])) for g in optimizer.param_groups] == want
    assert len(want) > 2
    same(_flat("", optimizer.state_dict()["state"]), _flat("", run.optimizer.state_dict()["state"]))


# --- mistakes --------------------------------------------------------------------------------


def refused(code: str, call: Callable[[], object], sim: Any) -> None:
    before = {k: v.clone() for k, v in sim.model.state_dict().items()}
    drawn = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=code):
        call()
    assert all(torch.equal(v, before[k]) for k, v in sim.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    run = Run(simulation(), OPTIMIZERS["adam"], SCHEDULES["adam"])
    run.train(1)
    folder = tmp_path / "c"
    qat.save_training(folder, run.sim, run.optimizer, run.scheduler)
    fresh = Run(simulation(), OPTIMIZERS["adam"], SCHEDULES["adam"])
    sim, load = fresh.sim, qat.load_training
    optimizer, scheduler = fresh.optimizer, fresh.scheduler
    other = torch.optim.SGD(sim.model.parameters(), 0.1)
    refused("FXQ616.*Adam", lambda: load(folder, sim, other, scheduler), sim)
    some = torch.optim.Adam([sim.model.get_parameter("5.bias")])
    refused("FXQ616.*this one does not", lambda: load(folder, sim, some, scheduler), sim)
    foreign = torch.optim.Adam(net().parameters())
    refused("FXQ616.*not of sim.model", lambda: load(folder, sim, foreign, scheduler), sim)
    refused("FXQ616.*schedule", lambda: load(folder, sim, optimizer), sim)
    plain = torch.optim.Adam(sim.model.parameters())
    few = lr_scheduler.CosineAnnealingLR(plain, 12)
    refused("FXQ616.*1 parameter groups", lambda: load(folder, sim, plain, few), sim)
    fxquant.save_checkpoint(sim, tmp_path / "plain")
    refused("FXQ615", lambda: load(tmp_path / "plain", sim, optimizer, scheduler), sim)
    refused("FXQ602", lambda: load(tmp_path / "nothing", sim, optimizer, scheduler), sim)
    index = folder / "checkpoint.json"
    index.write_text(index.read_text().replace('"initial_lr": 0.01', '"initial_lr": 0.02'))
    refused("FXQ603.*training state", lambda: load(folder, sim, optimizer, scheduler), sim)


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    sim = simulation()
    optimizer = torch.optim.SGD(sim.model.parameters(), 0.1)

    def save(**options: Any) -> Callable[[], object]:
        return lambda: qat.save_training(tmp_path / "c", sim, optimizer, **options)

    refused(r"FXQ617.*extra\.a\[1\] is a function", save(extra={"a": [1, net]}), sim)
    loop: list[Any] = []
    loop.append(loop)
    refused("FXQ617.*nested", save(extra=loop), sim)
    refused("FXQ616", lambda: qat.save_training(tmp_path / "c", sim, sim.model), sim)
    assert not (tmp_path / "c").exists()


@pytest.mark.skipif(needs_fork.args[0], reason="processes are forked and killed")
def test_killed_while_saving_leaves_the_older_or_the_newer_state(tmp_path: Path) -> None:
    sim = simulation()
    optimizer = torch.optim.SGD(sim.model.parameters(), 0.1, momentum=0.9)
    folder = tmp_path / "c"

    def save(step: int) -> None:
        optimizer.param_groups[0]["lr"] = float(step)
        qat.save_training(folder, sim, optimizer, step=step)

    def check() -> str:
        fresh = simulation_like(sim)
        loaded = torch.optim.SGD(fresh.model.parameters(), 0.1, momentum=0.9)
        step = qat.load_training(folder, fresh, loaded).step
        assert loaded.param_groups[0]["lr"] == step, "all of one state"
        return {1: "old", 2: "new"}[step]

    assert sweep(lambda: save(2), check, tmp_path, lambda: save(1)) > 10


def simulation_like(sim: Any) -> QuantizationSimModel:
    return QuantizationSimModel(net(), X, sim.quant_scheme, 8, 4)
