"""The error of every node of a simulation: its own, and that accumulated in its result.

One walk with two environments, the float model and the simulation, batch after batch. At a node
with quantizers the simulated node is computed a third time, on the float model's values: what then
differs is its own error. The noise that it causes at the outputs of the model is estimated from one
backward pass of the float model, for all nodes at once: `J e` to first order, with the Jacobian
`J` of the outputs by the node's value. Its energy is the mean of `(v^T J e)^2` over random signs
`v` (Hutchinson 1990, "A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian
Smoothing Splines"); every sample of the data has signs of its own.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxquant import ops
from fxquant.calibrate import using_threads
from fxquant.graph.meta import module_path
from fxquant.graph.pytree import tensors
from fxquant.io.text_tables import table
from fxquant.nn.modes import evaluating, has_quantizers, quantization_off
from fxquant.ptq.layer_walk import require_number
from fxquant.ptq.walking.given_simulation import require_simulation
from fxquant.ptq.walking.output_gradients import OutputGradients
from fxquant.ptq.walking.walk import Environment, FloatEnvironment, Walk, batch_walks
from fxquant.ptq.walking.walk_cost import Cost
from fxquant.quantization.decibels import Power, shown, significant
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fxquant.ptq.walking.walk import Progress
    from fxquant.sim import QuantizationSimModel

_GRADIENT = "gradient"
_SHOWN = 20


@dataclass(frozen=True)
class NodeError:
    """How far the result of one node is from the float model's.

    Attributes:
        node: name of the fx node.
        module: path of the module that it calls, or of the one whose forward computes it.
        operator: name of the operator's row; empty for what has none.
        local_db: signal to noise ratio in dB of the simulated node fed with the float model's
            values; None where it has no quantizer, its result is no real-valued tensor, or there
            is no error.
        cumulative_db: the same in the simulation, with all errors before it; None where the result
            is no real-valued tensor, or there is no error.
        noise_share: the part that the node's own error has in the noise at the model's outputs, to
            first order; the parts of all nodes add up to 1. An estimate: of `n` samples it deviates
            by about `sqrt(2 / n)` of itself. None where the outputs do not depend smoothly on it,
            or it has no error of its own.
        source: the user's file and line.
        mse: mean squared error of the result, with all errors before it; None where it is no
            real-valued tensor.
    """

    node: str
    module: str
    operator: str
    local_db: float | None
    cumulative_db: float | None
    noise_share: float | None
    source: str
    mse: float | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts the node first whose error causes most noise at the outputs."""
        share = self.noise_share or 0.0
        return -share, float("inf") if self.local_db is None else self.local_db


@dataclass(frozen=True)
class NodeErrors:
    """Errors of all nodes; prints as a table of those that cause most noise at the outputs.

    Attributes:
        rows: one row a node, in the order of the graph.
        output_db: signal to noise ratio in dB of the model's outputs; None without an error.
        cost: what it cost, and the samples that were used.
    """

    rows: tuple[NodeError, ...]
    output_db: float | None
    cost: Cost = field(default_factory=Cost)

    def worst(self, n: int = 10) -> tuple[NodeError, ...]:
        """The nodes whose own errors cause most noise at the outputs: by share, then by dB."""
        own = [row for row in self.rows if row.local_db is not None]
        return tuple(sorted(own, key=lambda row: row.rank)[:n])

    def to_json(self) -> str:
        """The errors as JSON text; infinite ratios do not occur, a missing one is null."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        heads = ("module", "operator", "own dB", "with all before dB", "share of noise", "source")
        rows = [
            (
                r.module or r.node, r.operator, shown(r.local_db), shown(r.cumulative_db),
                "" if r.noise_share is None else f"{r.noise_share:.1%}", r.source,
            )
            for r in self.worst(_SHOWN)
        ]  # fmt: skip
        own = sum(row.local_db is not None for row in self.rows)
        end = f"{len(rows)} of {own} nodes with an error of their own"
        output = "equal" if self.output_db is None else f"{self.output_db:.1f} dB"
        return (
            f"{table(heads, rows)}\n{end}; outputs keep {output} of the float model's\n{self.cost}"
        )


def node_errors(
    sim: QuantizationSimModel,
    data: Any,
    *,
    samples: int | None = 32,
    shares: bool = True,
    progress: Progress | None = None,
    max_memory: int | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> NodeErrors:
    """Measure the own error of every node of a simulation, and the accumulated one of its result.

    Weights that a technique has changed are compared with those that they were before.

    Args:
        sim: a calibrated simulation; it is left as it is.
        data: an iterable of batches, as for `compute_encodings`.
        samples: samples that are enough; None: all. Whole batches are used.
        shares: estimate how much of the noise at the outputs each node's own error causes. That
            needs a backward pass of the float model over one batch, whose memory `max_memory` does
            not limit.
        progress: called after each node of each batch with (done, in all).
        max_memory: bytes of values that are held in memory; the rest lies in files.
        folder: where these files are.
        seed: of the random signs.
        threads: of torch; None: as they are.

    Returns:
        One row a node.

    Raises:
        CalibrationError: FXQ441 or FXQ475 the model does not take a batch, FXQ442 to FXQ445 the
            data are no batches or hold NaN.
        UncalibratedError: FXQ401, the simulation is not calibrated.
        ConfigError: FXQ296, `samples` is no number.

    Example:
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(64, 8)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), x)
        >>> sim.compute_encodings([x])
        >>> found = node_errors(sim, [x])
        >>> [row.module for row in found.rows]
        ['input_1_stub', '0']
    """
    require_simulation(sim, "node_errors")
    require_number("samples", samples, 1, none=True)
    require_number("max_memory", max_memory, 0, none=True)
    gm, cost = sim.model, Cost()
    started = time.process_time()
    measured = _Measured(gm, shares=shares, seed=seed)
    with measuring(gm, threads):
        walks = batch_walks(
            gm, data, (measured.exact, measured.sim), samples=samples, progress=progress,
            max_memory=max_memory, folder=folder,
        )  # fmt: skip
        for walk in walks:
            measured.add(walk, cost)
    cost.seconds = time.process_time() - started
    return measured.result(cost)


@contextmanager
def measuring(gm: fx.GraphModule, threads: int | None) -> Iterator[None]:
    """A graph in evaluation and without gradients; afterwards it is as it was before.

    Args:
        gm: the graph; what it writes into parameters and buffers is undone.
        threads: of torch; None: as they are.
    """
    from fxquant.onnx.runs.visible_writes import preserved  # it loads onnx_ir

    with using_threads(threads), preserved(gm), evaluating(gm), torch.no_grad():
        yield


class _Measured:
    """Sums over batches.

    Args:
        gm: the simulated graph.
        shares: whether gradients are taken.
        seed: of their signs.
    """

    def __init__(self, gm: fx.GraphModule, *, shares: bool, seed: int) -> None:
        self.gm = gm
        self.exact, self.sim = FloatEnvironment(gm, "float"), Environment(gm, "simulation")
        self.nodes = [n for n in gm.graph.nodes if n.op not in ("placeholder", "get_attr")]
        called = (n for n in self.nodes if n.op == "call_module")
        self.quantized = {n for n in called if has_quantizers(gm.get_submodule(str(n.target)))}
        self.local = {n: Power() for n in self.quantized}
        self.cumulative = {n: Power() for n in self.nodes}
        self.output_noise: dict[fx.Node, float] = {}
        chosen = self.quantized if shares else set[fx.Node]()
        self.gradients = OutputGradients(gm, chosen, chosen, seed)
        self.shares, self.batches = shares, 0

    def add(self, walk: Walk, cost: Cost) -> None:
        """Walk one batch."""
        if self.shares and self.quantized:
            self._weigh(walk)
        for node in walk.nodes():
            state = torch.get_rng_state()  # what is drawn is drawn alike in all three
            own = self._simulated(walk, node) if node in self.quantized else None
            torch.set_rng_state(state)
            start = time.process_time()
            walk.compute(node, self.exact)
            cost.float_seconds += time.process_time() - start
            torch.set_rng_state(state)
            walk.compute(node, self.sim)
            exact, found = (walk.value(node, e, 0) for e in walk.environments)
            if node in self.cumulative:
                self.cumulative[node].add_comparable(tensors(exact), tensors(found))
            if own is not None:
                self.local[node].add_comparable(tensors(exact), tensors(own))
                self._add_output_noise(walk, node, exact, own)
        cost.samples += sum(walk.samples)
        cost.peak_bytes = max(cost.peak_bytes, walk.store.peak)
        cost.written_bytes += walk.store.written
        self.batches += 1

    def _simulated(self, walk: Walk, node: fx.Node) -> Any:
        """The simulated node's result for the float model's values."""
        return walk.computed(node, self.sim, 0, walk.operands(node, self.exact, 0))

    def _weigh(self, walk: Walk) -> None:
        with quantization_off(self.gm):
            found = self.gradients.of(walk.inputs(0), self.batches)
        self.gradients.values.clear()
        for node in list(found):
            walk.store.put((_GRADIENT, node), plain(found.pop(node)))

    def _add_output_noise(self, walk: Walk, node: fx.Node, exact: Any, own: Any) -> None:
        key = _GRADIENT, node
        if key not in walk.store:
            return
        gradient, samples = walk.store.get(key), walk.samples[0]
        walk.store.drop(key)
        error = significant(plain(own) - plain(exact))
        # values that lie in windows or heads still belong to one sample after the other
        parts = samples if error.dim() and error.shape[0] % samples == 0 else 1
        changes = (gradient.float() * error).reshape(parts, -1).sum(1).double()
        self.output_noise[node] = self.output_noise.get(node, 0.0) + float(changes.square().sum())

    def result(self, cost: Cost) -> NodeErrors:
        """The errors of all nodes."""
        total = sum(self.output_noise.values())
        noise = {n: found for n, found in self.output_noise.items() if found > 0}
        shares = {n: found / total for n, found in noise.items() if total > 0}
        rows = [self._row(n, shares.get(n)) for n in self.nodes if n.op != "output"]
        return NodeErrors(tuple(rows), self.cumulative[self.gm.graph.output_node()].db, cost)

    def _row(self, node: fx.Node, share: float | None) -> NodeError:
        row = ops.row_of(node, self.gm)
        called = node.op == "call_module"
        return NodeError(
            node.name, str(node.target) if called else module_path(node),
            row.name if row is not None else "",
            self.local[node].db if node in self.local else None, self.cumulative[node].db,
            share, str(node.meta.get("source") or ""), self.cumulative[node].mse,
        )  # fmt: skip
