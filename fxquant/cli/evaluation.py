"""What `--evaluate` names: a function of the model, or data with labels; and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.auto.calibration_data import call as call_model
from fxquant.calibrate import accepts
from fxquant.cli.batches import ALL, load_arrays
from fxquant.cli.input_keys import Keys, rows
from fxquant.cli.loading import RAISED, call, failed, load_function
from fxquant.errors import ConfigError, FxQuantError, nearest
from fxquant.graph.pytree import tensors
from fxquant.io.text_tables import table

if TYPE_CHECKING:
    from fxquant.auto.one_call import QuantizeResult
    from fxquant.auto.side_by_side import SideBySide

_PAIRS = "yield pairs: (inputs, labels)"
Pairs = Callable[[], Iterable[tuple[Any, Tensor]]]


def load_evaluation(
    spec: str, model: nn.Module, *, keys: Keys = ALL, batch_size: int = 32
) -> Measure:
    """A measure of models; the higher, the better.

    Args:
        spec: `path.py:function` of one argument, the model, which returns a number; of none, which
            yields pairs of inputs and labels, or dicts with labels; or an `.npz` with inputs by
            name and labels. Labels are compared with the largest of the first output: top-1, in
            percent.
        model: its arguments are the names of inputs.
        keys: which arrays or entries are inputs, and which labels; default: what is called so.
        batch_size: rows in a batch, for files.

    Raises:
        ConfigError: FXQ701 to FXQ705 and FXQ720 to FXQ728 for what cannot be read, FXQ770 there are
            no labels, FXQ771 they do not fit what the model returns.
    """
    if Path(spec).suffix == ".npz":
        return accuracy(_pairs_of_file(spec, keys, model, batch_size), spec)
    function = load_function(spec, what="evaluation function")
    if not accepts(function, 0):
        if keys.labels is not None:
            what = f"--labels {keys.labels} names an array, and {spec} is a function of the model"
            raise ConfigError("FXQ770", what, fix="leave it out: the function knows its labels")
        return Measure(spec.rpartition(":")[2], "", _guarded(function, spec))
    return accuracy(lambda: _pairs_of_function(function, spec, keys, model), spec)


@dataclass(frozen=True)
class Measure:
    """A number for a model; the higher, the better.

    Attributes:
        name: of the number.
        unit: of the number.
        evaluate: computes it; None: it is what a search computes without one.
    """

    name: str
    unit: str
    evaluate: Callable[[Any], Any] | None = None

    def text(self, value: float | None) -> str:
        """A value for people."""
        if value is None or not self.unit:
            return "" if value is None else f"{value:.5g}"
        return f"{value:.2f}{'' if self.unit == '%' else ' '}{self.unit}"


DECIBELS = Measure("SQNR", "dB")


def accuracy(pairs: Pairs, name: str) -> Measure:
    """Top-1 accuracy on labelled data.

    Args:
        pairs: starts a pass over batches of inputs and labels.
        name: how errors call them.
    """
    return Measure("accuracy", "%", Top1(pairs, name))


class Top1:
    """Share of rows whose largest output is their label, in percent.

    Args:
        pairs: starts a pass over batches of inputs and labels.
        name: how errors call them.
    """

    def __init__(self, pairs: Pairs, name: str) -> None:
        self.pairs, self.name = pairs, name

    def __call__(self, model: Any) -> float:
        right = total = 0
        for inputs, labels in self.pairs():
            labels = torch.as_tensor(labels)
            found = self._labels(call_model(model, inputs), labels)
            right, total = right + int((found == labels).sum()), total + labels.numel()
        if not total:
            what = f"{self.name} gives no labels"
            raise ConfigError("FXQ770", what, fix="yield at least one batch with labels")
        return 100.0 * right / total

    def _labels(self, result: Any, labels: Tensor) -> Tensor:
        outputs = [t for t in tensors(result) if t.is_floating_point()]
        if outputs and outputs[0].dim() >= 2:
            found = outputs[0].argmax(1)
            if found.shape == labels.shape and not labels.is_floating_point():
                self._require_classes(labels, outputs[0].shape[1])
                return found
        shapes = [list(t.shape) for t in outputs]
        what = f"labels {labels.dtype} {list(labels.shape)} do not fit outputs {shapes}"
        fix = "labels are integers [N] for outputs [N, classes]; else name a function of the model"
        raise ConfigError("FXQ771", what, at=self.name, fix=fix)

    def _require_classes(self, labels: Tensor, classes: int) -> None:
        wrong = labels[(labels < 0) | (labels >= classes)]
        if wrong.numel():  # they would count as mistakes of the model
            what = (
                f"there are {wrong.numel()} labels such as {int(wrong[0])}, and {classes} classes"
            )
            fix = f"labels are integers from 0 to {classes - 1}; leave samples without one out"
            raise ConfigError("FXQ771", what, at=self.name, fix=fix)


def _guarded(function: Callable[..., Any], spec: str) -> Callable[[Any], Any]:
    def evaluate(model: Any) -> Any:
        try:
            return function(model)
        except FxQuantError:
            raise
        except RAISED as error:  # the user's function may raise anything; say which one it was
            raise failed(error, f"calling {spec} failed") from error

    return evaluate


def _pairs_of_file(spec: str, keys: Keys, model: nn.Module, batch_size: int) -> Pairs:
    arrays = load_arrays(Path(spec), keys)
    found = _label_key(arrays, keys, spec)
    rest = {name: array for name, array in arrays.items() if name != found}
    if not rest:
        what = f"{spec} holds labels, and no inputs"
        raise ConfigError("FXQ770", what, fix="save the inputs beside the labels")
    inputs = keys.inputs_of(rest, model, spec)

    def read() -> Iterator[tuple[Any, Tensor]]:
        for i in range(0, len(arrays[found]), batch_size):
            yield rows(inputs, i, i + batch_size), arrays[found][i : i + batch_size]

    return read


def _pairs_of_function(
    function: Callable[..., Any], spec: str, keys: Keys, model: nn.Module
) -> Iterator[tuple[Any, Any]]:
    for i, batch in enumerate(call(function, spec)):
        where = f"{spec}, batch {i}"
        if isinstance(batch, Mapping):
            found = _label_key(batch, keys, where)
            rest = {name: value for name, value in batch.items() if name != found}
            yield keys.inputs_in(rest, model, where), batch[found]
        elif isinstance(batch, (tuple, list)) and len(batch) == 2 and keys.labels is None:
            inputs = tuple(batch[0]) if isinstance(batch[0], list) else batch[0]
            if isinstance(inputs, Mapping) or keys.inputs:
                inputs = keys.inputs_in(inputs, model, where)
            yield inputs, batch[1]
        else:
            kind = "no dict" if keys.labels else "neither a pair nor a dict"
            what = f"{where} is a {type(batch).__name__}, {kind} with inputs and labels"
            fix = "for pairs of inputs and labels leave it out" if keys.labels else _PAIRS
            raise ConfigError("FXQ770", what, fix=fix)


def _label_key(given: Mapping[str, Any], keys: Keys, where: str) -> str:
    found = keys.label_key(given)
    if found is not None:
        return found
    what = (
        f"{where} has nothing called {keys.labels!r}" if keys.labels else f"{where} has no labels"
    )
    hint = nearest(str(keys.labels), given) if keys.labels else ""
    fix = hint or f"--labels names one of {', '.join(map(str, given)) or 'none'}"
    raise ConfigError("FXQ770", what, fix=fix)


# --- what is printed -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """What a search found, and what it is measured by.

    Attributes:
        result: what was quantized.
        sizes: of the files, and their times.
        measure: what scores are.
    """

    result: QuantizeResult
    sizes: SideBySide
    measure: Measure


def summary(scored: Scored) -> str:
    """Float model, simulation and file side by side."""
    result, sizes, measure = scored.result, scored.sizes, scored.measure

    def row(name: str, score: float | None, size: int | None, seconds: float | None) -> Any:
        return (
            name, measure.text(score), "" if size is None else f"{size / 1e6:.3g} MB",
            "" if seconds is None else f"{seconds * 1e3:.3g} ms",
        )  # fmt: skip

    rows = [
        row("float model", result.float_score, sizes.float_bytes, sizes.float_seconds),
        row("simulation", result.score, None, None),
        row("onnxruntime", result.runtime_score, sizes.bytes, sizes.seconds),
    ]
    samples = f"time: {sizes.samples} samples in onnxruntime on one thread of this CPU"
    return f"{table(('', measure.name, 'file', 'time'), rows)}\n{samples}"


def plain(scored: Scored) -> Mapping[str, Any]:
    """The same as plain data."""
    result, sizes, measure = scored.result, scored.sizes, scored.measure
    report = result.report.to_dict()
    return {
        "metric": measure.name, "unit": measure.unit,
        "float": report["float_score"], "simulation": report["score"],
        "onnxruntime": result.runtime_score, "met": result.met, "samples": sizes.samples,
        "float_bytes": sizes.float_bytes, "bytes": sizes.bytes,
        "float_seconds": sizes.float_seconds, "seconds": sizes.seconds, "search": report,
    }  # fmt: skip
