"""Float model and quantized file side by side in onnxruntime: bytes and time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxquant.errors import ExportError
from fxquant.graph.pytree import tensors
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.ort.timing import NO_SPINNING, fastest
from fxquant.onnx.runs.observed import bound_example
from fxquant.onnx.session import Level, as_feed, open_session, packed

if TYPE_CHECKING:
    from torch import fx

_ROUNDS = 15
_SECONDS = 2.0  # of measuring, from which no further round is begun


@dataclass(frozen=True)
class SideBySide:
    """What a file gains.

    Attributes:
        samples: rows of the batch that the times are of.
        bytes: of the quantized file, with the weights beside it.
        float_bytes: of the float model's file; None if it has no form in ONNX.
        seconds: fastest of some runs of the quantized file, on one thread.
        float_seconds: the same of the float model's; None if it has no form in ONNX.
    """

    samples: int
    bytes: int
    float_bytes: int | None
    seconds: float
    float_seconds: float | None


def side_by_side(float_model: fx.GraphModule, example: Any, path: Path) -> SideBySide:
    """Measure the float model and the file that was made of it, in turns, on one thread.

    Args:
        float_model: the prepared float model.
        example: positional and keyword inputs.
        path: the quantized file.
    """
    given = tensors(bound_example(float_model, example))
    samples = next((len(t) for t in given if t.dim()), 1)
    size = path.stat().st_size + sum(
        p.stat().st_size for p in path.parent.glob(f"{path.name}*.data")
    )
    calls = {"quantized": _runner(path, given)}
    with contextlib.ExitStack() as stack:
        float_size = None
        with contextlib.suppress(ExportError):
            source, float_size = stack.enter_context(_float_file(float_model, example))
            calls["float"] = _runner(source, given)
        times = fastest(calls, rounds=_ROUNDS, seconds=_SECONDS)
    return SideBySide(samples, size, float_size, times["quantized"], times.get("float"))


@contextlib.contextmanager
def _float_file(model: fx.GraphModule, example: Any) -> Iterator[tuple[bytes | str | Path, int]]:
    with packed(lower(model, example).model) as source:
        if isinstance(source, bytes):
            yield source, len(source)
            return
        yield source, sum(p.stat().st_size for p in Path(source).parent.iterdir())


def _runner(source: bytes | str | Path, given: list[Any]) -> Callable[[], object]:
    session = open_session(source, Level.ALL, entries=NO_SPINNING)
    feeds = dict(zip(session.inputs, map(as_feed, given), strict=True))
    return lambda: session.run(feeds)
