"""What `--evaluate` names: a function of the model, or data with labels; and what comes of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.auto.calibration_data import LABELS
from fxquant.auto.calibration_data import call as call_model
from fxquant.cli.batches import load_arrays
from fxquant.cli.loading import call, failed, load_function
from fxquant.errors import ConfigError, FxQuantError, nearest
from fxquant.graph.pytree import tensors
from fxquant.io.text_tables import table

if TYPE_CHECKING:
    from fxquant.auto.one_call import QuantizeResult
    from fxquant.auto.side_by_side import SideBySide

Pairs = Callable[[], Iterable[tuple[Any, Tensor]]]


def load_evaluation(
    spec: str, labels: str | None, model: nn.Module, batch_size: int
) -> Callable[[Any], Any]:
    """A measure of models; the higher, the better.

    Args:
        spec: `path.py:function` of one argument, the model, which returns a number; of none, which
            yields pairs of inputs and labels; or an `.npz` with inputs by name and labels. Labels
            are compared with the largest of the first output: top-1, in percent.
        labels: which array of the `.npz` has the labels; default: the one that is called so.
        model: its arguments are the names of inputs.
        batch_size: rows in a batch, for files.

    Raises:
        ConfigError: FXQ701 to FXQ705 and FXQ720 to FXQ727 for what cannot be read, FXQ770 there are
            no labels, FXQ771 they do not fit what the model returns.
    """
    if Path(spec).suffix == ".npz":
        return Top1(_pairs_of_file(spec, labels, model, batch_size), spec)
    function = load_function(spec, what="evaluation function")
    if labels is not None:
        what = f"--labels {labels} names an array, and {spec} is a function"
        raise ConfigError("FXQ770", what, fix="leave it out: the function yields (inputs, labels)")
    if _takes_model(function):
        return _guarded(function, spec)
    return Top1(lambda: call(function, spec), spec)


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
        given: Iterable[Any] = self.pairs()
        for pair in given:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                what = f"{self.name} yields no pairs of inputs and labels"
                raise ConfigError("FXQ770", what, fix="yield (inputs, labels)")
            inputs, labels = pair[0], torch.as_tensor(pair[1])
            inputs = tuple(inputs) if isinstance(inputs, list) else inputs
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
                return found
        shapes = [list(t.shape) for t in outputs]
        what = f"labels {labels.dtype} {list(labels.shape)} do not fit outputs {shapes}"
        fix = "labels are integers [N] for outputs [N, classes]; else name a function of the model"
        raise ConfigError("FXQ771", what, at=self.name, fix=fix)


def _takes_model(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    except ValueError:  # a builtin without a signature
        return False
    return False


def _guarded(function: Callable[..., Any], spec: str) -> Callable[[Any], Any]:
    def evaluate(model: Any) -> Any:
        try:
            return function(model)
        except FxQuantError:
            raise
        except Exception as error:  # the user's function may raise anything; say which one it was
            raise failed(error, f"calling {spec} failed") from error

    return evaluate


def _pairs_of_file(spec: str, labels: str | None, model: nn.Module, batch_size: int) -> Pairs:
    arrays = load_arrays(Path(spec))
    found = labels or next((name for name in arrays if name in LABELS), None)
    if found is None or found not in arrays:
        what = f"{spec} has no array {labels!r}" if labels else f"{spec} has no labels"
        hint = nearest(str(labels), arrays) if labels else ""
        raise ConfigError("FXQ770", what, fix=hint or f"its arrays are {', '.join(arrays)}")
    inputs = {name: array for name, array in arrays.items() if name not in {found, *LABELS}}
    if not inputs:
        what = f"{spec} holds labels, and no inputs"
        raise ConfigError("FXQ770", what, fix="save the inputs beside the labels")
    names = inspect.signature(model.forward).parameters

    def read() -> Iterator[tuple[Any, Tensor]]:
        for i in range(0, len(arrays[found]), batch_size):
            part = {k: v[i : i + batch_size] for k, v in inputs.items()}
            batch: Any = part if set(part) <= set(names) else tuple(part.values())
            yield batch, arrays[found][i : i + batch_size]

    return read


# --- what is printed -----------------------------------------------------------------------------


def summary(result: QuantizeResult, sizes: SideBySide) -> str:
    """Float model, simulation and file side by side."""

    def row(name: str, score: float | None, size: int | None, seconds: float | None) -> Any:
        return (
            name, "" if score is None else f"{score:.5g}",
            "" if size is None else f"{size / 1e6:.3g} MB",
            "" if seconds is None else f"{seconds * 1e3:.3g} ms",
        )  # fmt: skip

    heads = ("", "score" if result.report.measured else "dB", "file", "time")
    rows = [
        row("float model", result.float_score, sizes.float_bytes, sizes.float_seconds),
        row("simulation", result.score, None, None),
        row("onnxruntime", result.runtime_score, sizes.bytes, sizes.seconds),
    ]
    samples = f"time: {sizes.samples} samples in onnxruntime on one thread of this CPU"
    return f"{table(heads, rows)}\n{samples}"


def plain(result: QuantizeResult, sizes: SideBySide) -> Mapping[str, Any]:
    """The same as plain data."""
    report = result.report.to_dict()
    return {
        "float": report["float_score"], "simulation": report["score"],
        "onnxruntime": result.runtime_score, "met": result.met, "samples": sizes.samples,
        "float_bytes": sizes.float_bytes, "bytes": sizes.bytes,
        "float_seconds": sizes.float_seconds, "seconds": sizes.seconds, "search": report,
    }  # fmt: skip
