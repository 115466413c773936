"""onnxruntime sessions: the only file that imports onnxruntime, and only when it is called.

Why two levels are enough: results without optimization equal those of BASIC bit for bit, and those
of EXTENDED equal those of ALL: integer kernels are fused at EXTENDED, and ALL adds layouts only.
"""

from __future__ import annotations

import enum
import functools
import json
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from fxquant.errors import ExportError
from fxquant.io import reading
from fxquant.onnx.weightless import weight_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fxquant.io.reading import Budget

_INLINE_LIMIT = (
    1 << 30
)  # bytes of weights up to which a model travels in memory; protobuf ends at 2 GB


_RUNS = "pass inputs of the model's names, types and shapes; a failure on these is onnxruntime's"


class Level(enum.Enum):
    """How much onnxruntime may rewrite the graph."""

    OFF = "off"  # every node as it is written: float arithmetic between Q and DQ
    BASIC = "basic"  # constants folded, nodes without effect gone
    FUSED = "extended"  # integer kernels, names kept: what the coverage is read from
    ALL = "all"  # what users get by default


_LEVELS = {
    Level.OFF: "ORT_DISABLE_ALL",
    Level.BASIC: "ORT_ENABLE_BASIC",
    Level.FUSED: "ORT_ENABLE_EXTENDED",
    Level.ALL: "ORT_ENABLE_ALL",
}


@dataclass(frozen=True)
class Session:
    """An onnxruntime session on the CPU.

    Attributes:
        handle: the `onnxruntime.InferenceSession`.
        inputs: names of the graph inputs in order.
        outputs: names of the graph outputs in order.
    """

    handle: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(
        self, feeds: Mapping[str, NDArray[Any]], wanted: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Outputs by name; `feeds` may hold more than the graph takes.

        Raises:
            ExportError: onnxruntime refuses the feeds or fails while running.
        """
        names = list(self.outputs if wanted is None else wanted)
        # a number without dimensions is no array to numpy once it was computed with
        given = {name: np.asarray(feeds[name]) for name in self.inputs if name in feeds}
        try:
            values = self.handle.run(names, given)
        except Exception as error:  # onnxruntime's errors share no base but Exception
            what = f"onnxruntime failed while running: {error}"
            raise ExportError("FXQ552", what, fix=_RUNS) from error
        return dict(zip(names, values, strict=True))


Source = bytes | str | Path


class OutOfMemoryError(Exception):
    """A run needed more memory than it was given."""


class OutOfTimeError(Exception):
    """A run needed more CPU time than it was given."""


def open_session(
    source: Source, level: Level, *, threads: int = 1, entries: Mapping[str, str] | None = None
) -> Session:
    """A session over a file or a serialized model.

    Args:
        source: path of a file, or what `packed` gives.
        level: how much onnxruntime may rewrite.
        threads: threads within an operator; up to two make no difference, more do in the last bits
            of float sums over a middle axis (`fxquant.onnx.integer.kernels.reductions`).
        entries: session configuration, e.g. ``{"session.disable_quant_qdq": "1"}``.

    Raises:
        ExportError: FXQ551, onnxruntime cannot load the model.
    """
    return _create(source, _options(level, threads, entries or {}))


def run_within(
    source: Source, feeds: Mapping[str, NDArray[Any]], budget: Budget, *, bounded: bool = True
) -> None:
    """Run a model once, without optimizations, in little memory and time.

    Nothing is computed before the run, constants neither, and every tensor lies in an arena of
    `reading.RUN_BYTES`, so that what is too large is refused before it is touched.

    Args:
        source: path of a file, or what `packed` gives.
        feeds: inputs by name.
        budget: the time; a kernel that has begun comes to its end.
        bounded: whether memory is bounded.

    Raises:
        OutOfMemoryError: it needs more memory.
        OutOfTimeError: it needs more time.
        ExportError: onnxruntime cannot load or run the model for another reason.
    """
    entries = {"session.use_env_allocators": "1"} if bounded and _arena() else {}
    options = _options(Level.OFF, 1, entries)
    options.log_severity_level = 4  # what fails here is told by who asked
    session = _create(source, options)
    run = _onnxruntime().RunOptions()
    run.log_severity_level = 4
    if entries:
        run.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_WATCH_SECONDS):
            if budget.is_spent():
                run.terminate = True

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        given = {name: feeds[name] for name in session.inputs if name in feeds}
        session.handle.run(None, given, run)
    except Exception as error:  # onnxruntime's errors share no base but Exception
        if run.terminate:
            raise OutOfTimeError from error
        if any(word in str(error) for word in _NO_MEMORY):
            raise OutOfMemoryError from error
        what = f"onnxruntime failed while running: {error}"
        raise ExportError("FXQ552", what, fix=_RUNS) from error
    finally:
        done.set()
        watcher.join()


_WATCH_SECONDS = 0.02
_NO_MEMORY = ("BFCArena", "bad_alloc", "Failed to allocate", "exceeds the supported maximum")


@functools.cache
def _arena() -> bool:
    """Register the arena of this process for sessions that ask for it; False if another has one."""
    ort = _onnxruntime()
    kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    place = ort.OrtMemoryInfo("Cpu", kind, 0, ort.OrtMemType.DEFAULT)
    try:
        # as much at a time as is asked for, instead of the next power of two
        ort.create_and_register_allocator(place, ort.OrtArenaCfg(reading.RUN_BYTES, 1, -1, -1))
    except Exception:  # of onnxruntime: the program has registered one of its own
        return False
    return True


@contextmanager
def packed(model: ir.Model) -> Iterator[Source]:
    """A model as sessions take it: its bytes, or a file for as long as it is needed.

    What is too large for memory twice, or for protobuf, goes into a temporary file.
    """
    if weight_bytes(model) <= _INLINE_LIMIT:
        ir.external_data.load_to_model(model)
        yield ir.to_proto(model).SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="fxquant-session-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data")
        yield path


def show(model: ir.Model, names: Iterable[str]) -> None:
    """Make the named values graph outputs, in place."""
    values = {v.name: v for node in model.graph for v in node.outputs}
    present = {v.name for v in model.graph.outputs}
    model.graph.outputs.extend(values[name] for name in names if name not in present)


def optimized(model: str | Path, level: Level = Level.FUSED) -> ir.Model:
    """The graph onnxruntime makes of a file, without its weights.

    At `Level.FUSED` nodes keep the names they had, so operators can be followed through the fusion.

    Raises:
        ExportError: onnxruntime cannot load the model.
    """
    with tempfile.TemporaryDirectory(prefix="fxquant-optimized-") as folder:
        dump = Path(folder) / "optimized.onnx"
        options = _options(level, 1, {_EXTERNAL: "optimized.data", _EXTERNAL_FROM: "1024"})
        options.optimized_model_filepath = str(dump)
        _create(model, options)
        graph = ir.load(dump)
        _forget_weights(graph)
    return graph


_EXTERNAL = "session.optimized_model_external_initializers_file_name"
_EXTERNAL_FROM = "session.optimized_model_external_initializers_min_size_in_bytes"


@dataclass(frozen=True)
class KernelTime:
    """What one node of the optimized graph takes.

    Attributes:
        name: the node.
        operator: its type after optimization.
        seconds: mean over the faster half of the runs.
    """

    name: str
    operator: str
    seconds: float


def kernel_times(
    source: Source, feeds: Mapping[str, NDArray[Any]], *, rounds: int = 20, threads: int = 1
) -> tuple[KernelTime, ...]:
    """Time of every node of the graph that users run, in its order.

    Args:
        source: path of a file, or what `packed` gives.
        feeds: inputs by name.
        rounds: runs that are measured, after one that is not.
        threads: threads within an operator.

    Raises:
        ExportError: onnxruntime cannot load or run the model.
    """
    options = _options(Level.ALL, threads, {})
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="fxquant-profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "events")
        session = _create(source, options)
        try:
            for _ in range(rounds + 1):
                session.run(feeds)
        finally:
            file = Path(session.handle.end_profiling())
        events = json.loads(file.read_text(encoding="utf-8"))
    return _times(events, rounds + 1)


_KERNEL = "_kernel_time"


def _times(events: Sequence[Mapping[str, Any]], runs: int) -> tuple[KernelTime, ...]:
    found: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            details = event["args"]
            name = event["name"].removesuffix(_KERNEL)
            key = (name, details["op_name"], str(details["node_index"]))
            found.setdefault(key, []).append(event["dur"] * 1e-6)
    # microseconds are whole numbers there, so that the smallest alone would be coarse
    kept = {key: sorted(each[-(runs - 1) :])[: max(1, runs // 2)] for key, each in found.items()}
    return tuple(KernelTime(n, op, sum(v) / len(v)) for (n, op, _), v in kept.items())


def version() -> str:
    """Version of the installed onnxruntime."""
    return str(_onnxruntime().__version__)


def _forget_weights(model: ir.Model) -> None:
    # the file behind external tensors is gone when the folder is
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = None


def _options(level: Level, threads: int, entries: Mapping[str, str]) -> Any:
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[level])
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings are about what the report says anyway
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def _create(source: Source, options: Any) -> Session:
    ort = _onnxruntime()
    source = source if isinstance(source, bytes) else str(source)
    try:
        handle = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base but Exception
        what = f"onnxruntime cannot load the model: {error}"
        raise ExportError("FXQ551", what, fix="report this with the model") from error
    inputs = tuple(value.name for value in handle.get_inputs())
    return Session(handle, inputs, tuple(value.name for value in handle.get_outputs()))


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        what = "onnxruntime is not installed, so the model cannot be proven"
        raise ExportError("FXQ550", what, fix="pip install onnxruntime, or prove=False") from error
    return onnxruntime


def as_feed(value: Any) -> NDArray[Any]:
    """A torch tensor or array as a contiguous array that onnxruntime takes."""
    if hasattr(value, "detach"):
        try:
            value = value.detach().cpu().numpy()
        except TypeError as error:  # bfloat16, 8-bit floats
            kind = str(value.dtype).removeprefix("torch.")
            what = f"onnxruntime cannot be given an input of {kind}: {error}"
            raise ExportError("FXQ553", what, fix="use model.float() and float32 inputs") from error
    return np.asarray(value, order="C")
