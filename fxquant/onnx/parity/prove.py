"""The proof: does onnxruntime compute what the simulation computes?

Three questions:

- *shipped*: the file as it is written, opened and run at every optimization level, the default
  first. It must load, run, and give what the same graph gives whose integers are looked at: else
  what follows would be about another program.
- *forced*, without optimizations (float arithmetic between Q and DQ) and with all (fused integer
  kernels): every segment of the graph starts from the simulation's own integers. It must give the
  simulation's integers, except where its value lies on a rounding boundary.
- *whole run*: one flipped tie early changes what follows, so this is a measurement: share of equal
  elements, drift of the outputs, agreement of labels.

Forced and whole runs are about exact integer kernels. Where those of this CPU saturate, the same
integers run in the form that every CPU computes exactly (`unsigned`); what the file itself gives on
such a CPU is told beside it (`default_kernels`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import fx

from fxquant.errors import ExportError, ParityError
from fxquant.graph.pytree import tensors
from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.lowering.deployment import unsigned
from fxquant.onnx.lowering.unsigned_products import exact_model
from fxquant.onnx.ort.coverage import coverage
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.parity.default_kernels import default_kernels
from fxquant.onnx.parity.further_inputs import variations
from fxquant.onnx.parity.judge import output_row
from fxquant.onnx.parity.report import LevelInfo, OutputRow, ParityReport
from fxquant.onnx.parity.segments import Example, forced, graph_feeds, runs
from fxquant.onnx.parity.shipped_file import ALL_LEVELS, Shipped, check_same, run_shipped
from fxquant.onnx.parity.teacher_forcing import Reference, ReferenceRun
from fxquant.onnx.runs.observed import bound_example
from fxquant.onnx.session import Level, open_session, show, version

if TYPE_CHECKING:
    from fxquant.onnx.lowering.result import Lowered


def prove(
    gm: fx.GraphModule, lowered: Lowered, example: Example, path: str | Path, *, threads: int = 1
) -> ParityReport:
    """Compare a written file with the simulation that it was made from.

    Args:
        gm: the simulated model.
        lowered: its lowering: which value of the file is which tensor of the simulation.
        example: positional and keyword inputs of the simulation.
        path: the file.
        threads: of onnxruntime, see `fxquant.onnx.session.open_session`.

    Returns:
        The report; `raise_unless_proven` turns it into an error.

    Raises:
        ExportError: onnxruntime cannot load or run the file, or the simulation itself is unsound.
    """
    start = time.perf_counter()
    feeds = graph_feeds(gm, lowered, example)
    shipped = run_shipped(path, feeds, threads)
    if not this_cpu().exact:
        lowered = unsigned(dataclasses.replace(lowered, model=ir.load(path)))
    found = forced(gm, lowered, example, path, threads=threads)
    model = exact_model(path)
    operators = coverage(path, model=model)
    levels, drift = _whole_runs(model, found.reference_run, threads, shipped)
    others = _prove_others(gm, lowered, example, path, threads) if found.proven else ()
    return ParityReport(
        proven=found.proven,
        max_steps=max((r.max_steps for r in found.tensors), default=0),
        tensors=found.tensors,
        outputs=(*found.outputs, *drift),
        shipped=tuple(level.value for level in shipped),
        others=others,
        choices=found.choices,
        levels=levels,
        operators=operators,
        skipped=tuple(found.reference_run.missed),
        notes=notes_of(lowered),
        risks=IntegerModel(path).saturations(),
        cpu=str(this_cpu()),
        kernels=default_kernels(path, feeds),
        seconds=time.perf_counter() - start,
        runtime=f"onnxruntime {version()}",
    )


_ELEMENTS = 1 << 20  # of all inputs, up to which other values are proven at the example's size


def _prove_others(
    gm: fx.GraphModule, lowered: Lowered, example: Example, path: str | Path, threads: int
) -> tuple[str, ...]:
    """Prove the file on other values and batch sizes too: something may be frozen by accident.

    Returns:
        What differed from the example, for people.

    Raises:
        ParityError: FXQ588, the file is right on the example only.
    """
    if lowered.varying is None:
        return ()
    found = variations(gm, example, lowered.varying)
    size = sum(t.numel() for t in tensors(bound_example(gm, example)))
    fewer = [v for v in found if sum(t.numel() for t in tensors(v.example)) < size]
    chosen = found if size <= _ELEMENTS else fewer or found[:1]
    feeds: list[dict[str, NDArray[Any]]] = []
    for variation in chosen:
        with _refusing(variation.what):
            feeds.append(graph_feeds(gm, lowered, variation.example))
    for level in ALL_LEVELS if feeds else ():  # opening takes longer than a run on little
        session = open_session(path, level, threads=threads)
        for variation, given in zip(chosen, feeds, strict=True):
            with _refusing(variation.what):
                session.run(given)
    for variation in chosen:
        with _refusing(variation.what):
            part = forced(gm, lowered, variation.example, path, threads=threads)
        if not part.proven:
            _refuse(variation.what, part.verdict(), None, None)
    return tuple(variation.what for variation in chosen)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Errors inside are about other inputs than the example."""
    try:
        yield
    except ExportError as error:
        _refuse(what, f"{error.code}: {error.what}", error.at, error)


def _refuse(what: str, why: str, at: Any, cause: ExportError | None) -> NoReturn:
    text = f"the file agrees with the simulation on the example, but not on {what}: {why}"
    fix = "a size or a value that inputs change was written as a constant: report it with the model"
    raise ParityError("FXQ588", text, at=at, fix=fix) from cause


def notes_of(lowered: Lowered) -> tuple[str, ...]:
    """What a report says about a file, proven or not."""
    written = (f"{f.node} ({f.operator}): {f.reason}" for f in lowered.fallbacks)
    notes = [f"torch's exporter wrote {text}" for text in written]
    notes += [*_rounding_notes(lowered), *lowered.notes]
    if lowered.batch_note:
        notes.append(f"the batch size is fixed: {lowered.batch_note}")
    return tuple(notes)


def _rounding_notes(lowered: Lowered) -> list[str]:
    """Stored integers can be rounded in any way, what QuantizeLinear computes only to even."""
    computed = [t for t in lowered.tensors if t.kind == "activation" and t.float_name]
    modes = sorted({t.rounding for t in computed} - {"half_even"})
    found = {mode: [t for t in computed if t.rounding == mode] for mode in modes}
    return [
        f"{len(tensors)} activation(s) are simulated with {mode} rounding, which ONNX cannot say: "
        f"its QuantizeLinear rounds ties to even (first: {tensors[0].module or tensors[0].node})"
        for mode, tensors in found.items()
    ]


def _whole_runs(
    model: ir.Model, reference_run: ReferenceRun, threads: int, shipped: Shipped
) -> tuple[tuple[LevelInfo, ...], list[OutputRow]]:
    """Run the model from its inputs at both levels; its integers become outputs."""
    show(model, [t.tensor.quantized_name for t in reference_run.tensors])
    levels, outputs = [], []
    for level, found in runs(model, reference_run.feeds, threads):
        # where default kernels saturate, the exact form gives other integers than the file
        if level is Level.OFF or this_cpu().exact:
            check_same(shipped[level], found, reference_run.outputs, level)
        levels.append(_level_info(level, reference_run.tensors, found))
        for name, ours in reference_run.outputs.items():
            outputs.append(output_row(name, ours, found[name], level, None))
    return tuple(levels), outputs


def _level_info(
    level: Level, reference: Sequence[Reference], found: Mapping[str, NDArray[Any]]
) -> LevelInfo:
    total = equal = most = 0
    for item in reference:
        theirs = found[item.tensor.quantized_name]
        total += item.integers.size
        if theirs.shape != item.integers.shape:
            # values chose other rows: none of them is compared with its like
            continue
        same = int((theirs == item.integers).sum())
        equal += same
        if same < item.integers.size:
            steps = np.abs(theirs.astype(np.int32) - item.integers.astype(np.int32))
            most = max(most, int(steps.max()))
    return LevelInfo(level.value, equal / total if total else 1.0, most)
