"""Adapters: each is an `on_event` that writes to an experiment tracker.

The trackers are extras of the package, imported when an adapter is made. Numbers become series
whose step is the value "step" of an event, or the number of events of that name so far; texts
become texts, or tags.
"""

from __future__ import annotations

import importlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from fxquant.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from fxquant.tracking.events import Value

_STEP = "step"


class _Tracker:
    """Counts events; a `with` block closes the tracker at its end."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def __call__(self, name: str, values: Mapping[str, Value], /) -> None:
        """Write an event."""
        step = values.get(_STEP, self._seen[name])
        self._seen[name] += 1
        rest = {k: v for k, v in values.items() if k != _STEP}
        texts = {k: v for k, v in rest.items() if isinstance(v, str)}
        numbers = {k: float(v) for k, v in rest.items() if not isinstance(v, str)}
        self._write(name, numbers, texts, int(step))

    def _write(
        self, name: str, numbers: Mapping[str, float], texts: Mapping[str, str], step: int
    ) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Write what is left."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class TensorBoardTracker(_Tracker):
    """Writes events for TensorBoard: scalars `NAME/VALUE`, and texts.

    Args:
        folder: of the event files.
        writer: a `torch.utils.tensorboard.SummaryWriter` instead; it is left open.

    Raises:
        ConfigError: FXQ761, TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path | None = None, *, writer: Any = None) -> None:
        super().__init__()
        self._own = writer is None
        if writer is None:
            found = _package("torch.utils.tensorboard", "tensorboard")
            writer = found.SummaryWriter(None if folder is None else str(folder))
        self._writer = writer

    def _write(
        self, name: str, numbers: Mapping[str, float], texts: Mapping[str, str], step: int
    ) -> None:
        for key, value in numbers.items():
            self._writer.add_scalar(f"{name}/{key}", value, step)
        for key, text in texts.items():
            self._writer.add_text(f"{name}/{key}", text, step)

    def close(self) -> None:
        """Write what is left; what was handed in is left open."""
        self._writer.flush()
        if self._own:
            self._writer.close()


class MlflowTracker(_Tracker):
    """Writes events into the active run of MLflow: metrics `NAME.VALUE`, and texts as tags.

    Args:
        run_id: the run; default: the active one, which MLflow begins when there is none.

    Raises:
        ConfigError: FXQ761, MLflow is not installed.
    """

    def __init__(self, run_id: str | None = None) -> None:
        super().__init__()
        self._mlflow = _package("mlflow", "mlflow")
        self._run = run_id

    def _write(
        self, name: str, numbers: Mapping[str, float], texts: Mapping[str, str], step: int
    ) -> None:
        run = self._run or (self._mlflow.active_run() or self._mlflow.start_run()).info.run_id
        client = self._mlflow.MlflowClient()
        for key, value in numbers.items():
            client.log_metric(run, f"{name}.{key}", value, step=step)
        for key, text in texts.items():
            client.set_tag(run, f"{name}.{key}", text)


class WandbTracker(_Tracker):
    """Writes events into a run of Weights & Biases as `NAME/VALUE`, each with a step of its own.

    Args:
        run: what `wandb.init` returned; default: the active run, or a new one.

    Raises:
        ConfigError: FXQ761, wandb is not installed.
    """

    def __init__(self, run: Any = None) -> None:
        super().__init__()
        if run is None:
            wandb = _package("wandb", "wandb")
            run = wandb.run or wandb.init()
        self._run = run

    def _write(
        self, name: str, numbers: Mapping[str, float], texts: Mapping[str, str], step: int
    ) -> None:
        values: dict[str, Value] = {**numbers, **texts, _STEP: step}
        self._run.log({f"{name}/{key}": value for key, value in values.items()})


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        what = f"{extra} is not installed"
        fix = f"pip install fxquant[{extra}]"
        raise ConfigError("FXQ761", what, fix=fix) from error
