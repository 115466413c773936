"""How long choices take in onnxruntime: files are written and run, not estimated."""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxquant.graph.pytree import tensors
from fxquant.mixed_precision.mixed_result import FLOAT
from fxquant.onnx.io.reader import read_model
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.ort.feeds import feeds_of
from fxquant.onnx.ort.owners import Owners
from fxquant.onnx.ort.timing import NO_SPINNING, fastest
from fxquant.onnx.runs.observed import bound_example
from fxquant.onnx.session import Level, Session, kernel_times, open_session, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fxquant.sim import QuantizationSimModel


class Stopwatch:
    """Times files of a simulation in onnxruntime, on its example inputs.

    Args:
        sim: the simulation.
        rounds: how often each file is measured.
        threads: threads within an operator.
    """

    def __init__(self, sim: QuantizationSimModel, rounds: int = 20, threads: int = 1) -> None:
        self.sim, self.rounds, self.threads = sim, rounds, threads
        self.given = tensors(bound_example(sim.model, sim.example))

    def interleaved(self, states: Mapping[str, Callable[[], None]]) -> dict[str, float]:
        """Seconds of one run by name, and that of the float model as `FLOAT`.

        Args:
            states: name -> puts the simulation into the state that is to be measured.
        """
        with tempfile.TemporaryDirectory(prefix="fxquant-latency-") as folder:
            sessions = {FLOAT: self._float()}
            for number, (name, put) in enumerate(states.items()):
                put()
                sessions[name] = open_session(
                    self._written(Path(folder), str(number)), Level.ALL, threads=self.threads,
                    entries=NO_SPINNING,
                )  # fmt: skip
            return self._measured(sessions, read_model(Path(folder) / "0.onnx").graph)

    def _measured(self, sessions: Mapping[str, Session], graph: Any) -> dict[str, float]:
        feeds = feeds_of(graph, self.given)
        calls = {name: functools.partial(s.run, feeds) for name, s in sessions.items()}
        # one thread computes in the calling thread, whose own time counts no one else's
        clock = time.thread_time if self.threads == 1 else time.perf_counter
        return fastest(calls, rounds=self.rounds, clock=clock)

    def kernels(self, put: Callable[[], None]) -> dict[str, float]:
        """Seconds by operator of the file, its conversions among them.

        Args:
            put: puts the simulation into the state that is to be measured.
        """
        put()
        with tempfile.TemporaryDirectory(prefix="fxquant-latency-") as folder:
            path = self._written(Path(folder), "0")
            graph = read_model(path).graph
            feeds = feeds_of(graph, self.given)
            owners = Owners(graph)
            found: dict[str, float] = {}
            times = kernel_times(path, feeds, rounds=self.rounds, threads=self.threads)
            for entry in times:
                name = owners.of(entry)
                found[name] = found.get(name, 0.0) + entry.seconds
            return found

    def _written(self, folder: Path, name: str) -> Path:
        self.sim.export(folder, name, prove=False)
        return folder / f"{name}.onnx"

    def _float(self) -> Session:
        plain = self.sim.get_original_model().eval()
        with packed(lower(plain, self.sim.example).model) as source:
            return open_session(source, Level.ALL, threads=self.threads, entries=NO_SPINNING)
