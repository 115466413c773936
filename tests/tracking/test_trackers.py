"""Events of runs: what is told and when, and what each tracker makes of it."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fxquant
from fxquant import qat
from fxquant.errors import ConfigError
from fxquant.ptq import reconstruct
from fxquant.tracking import MlflowTracker, TensorBoardTracker, WandbTracker
from fxquant.tracking.events import emit

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


class Recorder:
    """Keeps all events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep an event, if it is one."""
        assert all(type(v) in (int, float, str) for v in values.values()), values
        assert all(math.isfinite(v) for v in values.values() if not isinstance(v, str))
        self.events.append((name, dict(values)))

    def of(self, name: str) -> list[dict[str, Any]]:
        """The values of all events of a name."""
        return [values for found, values in self.events if found == name]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def simulation() -> fxquant.QuantizationSimModel:
    sim = fxquant.QuantizationSimModel(net(), X, default_param_bw=4)
    sim.compute_encodings([X])
    return sim


# --- what is told --------------------------------------------------------------------------------


def test_a_search_tells_every_trial_and_the_result(tmp_path: Path) -> None:
    told, steps = Recorder(), list[str]()
    found = fxquant.quantize(
        net(), [X[:32], X[32:]], out=tmp_path, techniques=["reconstruct"], param_bw=4,
        prove=False, on_event=told, progress=steps.append,
    )  # fmt: skip
    trials = told.of("quantize.trial")
    assert [t["techniques"] for t in trials] == [" + ".join(t.names) for t in found.tried]
    assert [t["score"] for t in trials] == [t.score.value for t in found.tried if t.score]
    (result,) = told.of("quantize.result")
    assert result["score"] == found.score
    assert result["techniques"] == "reconstruct"
    assert "float_score" not in result, "it is infinite"
    assert [s["text"] for s in told.of("quantize.step")] == steps, "one progress, told twice"


def test_auto_quant_tells_the_same(tmp_path: Path) -> None:
    told = Recorder()
    auto = fxquant.AutoQuant(net(), X, [X], lambda _: 1.0, results_dir=tmp_path, on_event=told)
    auto.optimize()
    assert len(told.of("quantize.trial")) == len(told.of("quantize.result")) == 1


def test_reconstruction_tells_its_layers() -> None:
    told, steps = Recorder(), list[tuple[int, int]]()
    report = reconstruct(
        simulation(), [X], on_event=told, progress=lambda done, total: steps.append((done, total))
    )
    layers = told.of("reconstruct.layer")
    assert [(x["path"], x["error_after"]) for x in layers] == [
        (x.path, x.error_after) for x in report.layers
    ]
    assert [(p["step"], p["total"]) for p in told.of("reconstruct.progress")] == steps


def test_training_tells_its_losses_and_oscillations() -> None:
    told, sim = Recorder(), simulation()
    distiller = qat.Distiller(sim.model, net(), {"1": 0.5}, on_event=told)
    tracker = qat.OscillationTracker(sim.model, on_event=told)
    _, loss = distiller(X)
    distiller(X)
    tracker.step()
    first, second = told.of("qat.distillation")
    assert first["loss"] == pytest.approx(loss.item())
    assert first["logits"] + first["1"] == pytest.approx(first["loss"])
    assert (first["step"], second["step"]) == (1, 2)
    assert told.of("qat.oscillation") == [{"step": 1, "oscillating": 0.0, "frozen": 0.0}]


def test_what_cannot_be_called_is_refused(tmp_path: Path) -> None:
    sim: Any = simulation()
    wrong: Any = "print"
    for call in (
        lambda: fxquant.quantize(net(), X, out=tmp_path, on_event=wrong),
        lambda: reconstruct(sim, [X], on_event=wrong),
        lambda: qat.Distiller(sim.model, net(), on_event=wrong),
        lambda: qat.OscillationTracker(sim.model, on_event=wrong),
    ):
        with pytest.raises(ConfigError, match="FXQ772"):
            call()


# --- trackers ------------------------------------------------------------------------------------

EVENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("a.b", {"x": 1.5, "n": 2, "note": "first"}),
    ("a.b", {"x": 2.5}),
    ("c", {"step": 7, "y": math.inf, "z": 0.25, "none": None}),
)


def tell(tracker: Any) -> None:
    for name, values in EVENTS:
        emit(tracker, name, values)


def test_a_writer_of_tensorboard_gets_scalars_and_texts() -> None:
    calls: list[Any] = []
    writer = SimpleNamespace(
        add_scalar=lambda *a: calls.append(a), add_text=lambda *a: calls.append(a),
        flush=lambda: calls.append("flush"),
    )  # fmt: skip
    with TensorBoardTracker(writer=writer) as tracker:
        tell(tracker)
    assert calls == [
        ("a.b/x", 1.5, 0), ("a.b/n", 2.0, 0), ("a.b/note", "first", 0), ("a.b/x", 2.5, 1),
        ("c/z", 0.25, 7), "flush",
    ]  # fmt: skip


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    reading = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    with TensorBoardTracker(tmp_path) as tracker:
        tell(tracker)
    found = reading.EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("a.b/x")] == [(0, 1.5), (1, 2.5)]
    assert [(e.step, e.value) for e in found.Scalars("c/z")] == [(7, 0.25)]


def test_a_run_of_wandb_gets_values_with_their_step() -> None:
    logged: list[Any] = []
    tell(WandbTracker(SimpleNamespace(log=logged.append)))
    assert logged == [
        {"a.b/x": 1.5, "a.b/n": 2.0, "a.b/note": "first", "a.b/step": 0},
        {"a.b/x": 2.5, "a.b/step": 1}, {"c/z": 0.25, "c/step": 7},
    ]  # fmt: skip


def test_mlflow_gets_metrics_and_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    client = SimpleNamespace(
        log_metric=lambda *a, step: calls.append((*a, step)), set_tag=lambda *a: calls.append(a)
    )
    run = SimpleNamespace(info=SimpleNamespace(run_id="r"))
    fake = SimpleNamespace(
        active_run=lambda: None, start_run=lambda: run, MlflowClient=lambda: client
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    tell(MlflowTracker())
    assert calls == [
        ("r", "a.b.x", 1.5, 0), ("r", "a.b.n", 2.0, 0), ("r", "a.b.note", "first"),
        ("r", "a.b.x", 2.5, 1), ("r", "c.z", 0.25, 7),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # those of MLflow's own parts
def test_mlflow_reads_what_is_written(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    with mlflow.start_run() as run:
        tell(MlflowTracker())
    found = mlflow.MlflowClient().get_metric_history(run.info.run_id, "a.b.x")
    assert [(m.step, m.value) for m in found] == [(0, 1.5), (1, 2.5)]


@pytest.mark.parametrize(
    ("tracker", "package", "extra"),
    [
        (TensorBoardTracker, "torch.utils.tensorboard", "tensorboard"),
        (MlflowTracker, "mlflow", "mlflow"),
        (WandbTracker, "wandb", "wandb"),
    ],
)
def test_a_tracker_that_is_not_installed_names_its_extra(
    tracker: Any, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match="FXQ761") as caught:
        tracker()
    assert caught.value.fix == f"pip install fxquant[{extra}]"
