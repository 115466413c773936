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
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import fx

from fxquant.errors import ExportError
from fxquant.graph.structure import tensors
from fxquant.onnx.call import path_of
from fxquant.onnx.choices import choosers
from fxquant.onnx.choices import rows as choice_rows
from fxquant.onnx.coverage import coverage
from fxquant.onnx.cpu import this_cpu
from fxquant.onnx.default_kernels import default_kernels
from fxquant.onnx.deploy import unsigned
from fxquant.onnx.error_analysis import Rounding
from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.judge import classify, output_row, with_noise, without_noise
from fxquant.onnx.lowered import LoweredTensor
from fxquant.onnx.noise import (
    FLOAT_ISLAND_SLACK,
    FLOAT_SLACK,
    UNIT,
    Bound,
    Tolerance,
    bounds_of,
    constant,
    magnitude,
    tolerances,
)
from fxquant.onnx.record import bound_example
from fxquant.onnx.report import ChoiceRow, LevelInfo, OutputRow, ParityReport, TensorRow
from fxquant.onnx.runtime import Level, as_feed, open_session, packed, show, version
from fxquant.onnx.shipped import Shipped, check_same, run_shipped
from fxquant.onnx.teacher import Lesson, Taught, cut, teach
from fxquant.onnx.unsigned import exact_model

if TYPE_CHECKING:
    from fxquant.onnx.lowered import Lowered

Example = tuple[tuple[Any, ...], Mapping[str, Any]]

LEVELS = (Level.OFF, Level.ALL)


def prove(
    gm: fx.GraphModule, lowered: Lowered, example: Example, path: str | Path, *, threads: int = 1
) -> ParityReport:
    """Compare a written file with the simulation that it was made from.

    Args:
        gm: the simulated model.
        lowered: its lowering: which value of the file is which tensor of the simulation.
        example: positional and keyword inputs of the simulation.
        path: the file.
        threads: of onnxruntime; results do not depend on it.

    Returns:
        The report; `raise_unless_proven` turns it into an error.

    Raises:
        ExportError: onnxruntime cannot load or run the file, or the simulation itself is unsound.
    """
    start = time.perf_counter()
    feeds = _graph_feeds(gm, lowered, example)
    shipped = run_shipped(path, feeds, threads)
    if not this_cpu().exact:
        lowered = unsigned(dataclasses.replace(lowered, model=ir.load(path)))
    model = exact_model(path)
    wanted = [*_computed(model, lowered), *_inputs(model, gm, lowered)]
    peaks = {name: magnitude(value) for name, value in feeds.items()}
    allowed = tolerances(model, [t.quantized_name for t in wanted], peaks)
    lesson = teach(gm, example, wanted, allowed, choosers(model, lowered))
    lesson.feeds = feeds
    lesson.outputs = _named_outputs(lowered, lesson)
    scores = bounds_of(model, [c.chooser.scores for c in lesson.choices], peaks)
    bounds = _output_tolerances(model, lesson, peaks)
    # an output that is a choice is judged as one
    bounds |= {c.chooser.places: math.inf for c in lesson.choices if c.chooser.places in bounds}
    operators = coverage(path, model=model)
    levels, drift = _whole_runs(model, lesson, threads, shipped)
    # the first model shows its integers by now
    forced = _Forced(gm, lesson, allowed, bounds, scores)
    rows, choices, outputs = forced.compare(exact_model(path), threads)
    return ParityReport(
        proven=not any(r.unexplained for r in rows)
        and all(c.proven for c in choices)
        and all(o.proven for o in outputs),
        max_steps=max((r.max_steps for r in rows), default=0),
        tensors=tuple(rows),
        outputs=(*outputs, *drift),
        shipped=tuple(level.value for level in shipped),
        choices=tuple(choices),
        levels=levels,
        operators=operators,
        skipped=tuple(lesson.missed),
        notes=notes_of(lowered),
        risks=IntegerModel(path).saturations(),
        cpu=str(this_cpu()),
        kernels=default_kernels(path, feeds),
        seconds=time.perf_counter() - start,
        runtime=f"onnxruntime {version()}",
    )


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


def _graph_feeds(gm: fx.GraphModule, lowered: Lowered, example: Example) -> dict[str, NDArray[Any]]:
    given = tensors(bound_example(gm, example))
    if len(given) != len(lowered.input_names):
        what = f"the model has {len(lowered.input_names)} inputs, the example {len(given)} tensors"
        raise ExportError("FXQ564", what, fix="pass every input the model was prepared with")
    return {name: as_feed(t) for name, t in zip(lowered.input_names, given, strict=True)}


def _named_outputs(lowered: Lowered, lesson: Lesson) -> dict[str, NDArray[Any]]:
    values, names = list(lesson.outputs.values()), lowered.output_names
    if len(values) != len(names):
        what = f"the file has {len(names)} outputs, the simulation {len(values)}"
        raise ExportError("FXQ567", what)
    return dict(zip(names, values, strict=True))


def _computed(model: ir.Model, lowered: Lowered) -> list[LoweredTensor]:
    """Quantized tensors that the runtime computes (the others are stored)."""
    made = {v.name for node in model.graph for v in node.outputs}
    return [t for t in lowered.tensors if t.kind == "activation" and t.quantized_name in made]


_INPUT = re.compile(r"(.+)\.input_(\d+)_q")


def _inputs(model: ir.Model, gm: fx.GraphModule, lowered: Lowered) -> list[LoweredTensor]:
    """Tensors that one consumer reads on another grid (`input_quantizers`).

    They are cut too: a tie there would be multiplied by all that follows.
    """
    known = {t.quantized_name for t in lowered.tensors}
    nodes = {path_of(node): node.name for node in gm.graph.nodes}
    found = []
    for node in model.graph:
        name = node.outputs[0].name or ""
        match = _INPUT.fullmatch(name) if node.op_type == "QuantizeLinear" else None
        if match and name not in known and match[1] in nodes:
            found.append(_input_tensor(node, nodes[match[1]], int(match[2])))
    return found


def _input_tensor(node: ir.Node, fx_name: str, index: int) -> LoweredTensor:
    scale, zero = constant(node.inputs[1]), node.inputs[2].const_value if node.inputs[2] else None
    name, real = node.outputs[0].name or "", node.inputs[0]
    if scale is None or zero is None:
        raise ExportError("FXQ568", f"{name!r} has no constant scale and zero point", at=node.name)
    return LoweredTensor(
        node=fx_name, index=index, module=name.removesuffix("_q"),
        float_name=real.name if real is not None else None, quantized_name=name,
        dequantized_name=None, scale=scale, zero_point=zero.numpy(), axis=None, block=None,
        dtype=zero.dtype, bits=int(zero.dtype.bitwidth), symmetric=False, kind="input",
    )  # fmt: skip


def _output_tolerances(
    model: ir.Model, lesson: Lesson, peaks: Mapping[str, float]
) -> dict[str, float]:
    """Relative difference that each float output may have when its segment is forced."""
    bounds = bounds_of(model, [v.name for v in model.graph.outputs], peaks)
    result = {}
    for name, value in lesson.outputs.items():
        peak, bound = magnitude(value), bounds.get(name)
        if bound is None or bound.island:
            result[name] = FLOAT_ISLAND_SLACK
        else:
            result[name] = max(FLOAT_SLACK, bound.error / peak if peak else 0.0, 8 * UNIT)
    return result


@dataclass(frozen=True)
class _Forced:
    """The forced comparison."""

    gm: fx.GraphModule
    lesson: Lesson
    allowed: Mapping[str, Tolerance]
    outputs: Mapping[str, float]
    scores: Mapping[str, Bound]

    def compare(
        self, model: ir.Model, threads: int
    ) -> tuple[list[TensorRow], list[ChoiceRow], list[OutputRow]]:
        """Rows of every tensor, choice and output at both levels; the model is cut."""
        feeds = cut(model, self.lesson)
        rounding = Rounding(model, feeds)
        nodes = {n.name: n for n in self.gm.graph.nodes}
        rows, choices, outputs = [], list[ChoiceRow](), []
        for level, found in _runs(model, feeds, threads):
            for taught in self.lesson.tensors:
                theirs = found[taught.tensor.quantized_name]
                row = self._row(taught, theirs, level, nodes)
                rows.append(without_noise(row, rounding, taught, theirs))
            choices += choice_rows(self.lesson.choices, found, level.value, self.scores)
            for name, ours in self.lesson.outputs.items():
                one = output_row(name, ours, found[name], level, self.outputs[name])
                outputs.append(with_noise(one, rounding, ours, found[name]))
        return rows, choices, outputs

    def _row(
        self, taught: Taught, runtime: NDArray[Any], level: Level, nodes: Mapping[str, fx.Node]
    ) -> TensorRow:
        tensor = taught.tensor
        source = nodes[tensor.node].meta.get("source")
        tally = classify(taught, runtime, self.allowed[tensor.quantized_name])
        return TensorRow(
            tensor.node, tensor.module, str(source) if source else "", level.value, **tally
        )


def _runs(
    model: ir.Model, feeds: Mapping[str, NDArray[Any]], threads: int
) -> Iterator[tuple[Level, dict[str, NDArray[Any]]]]:
    """All outputs at each level, one after the other."""
    with packed(model) as source:
        for level in LEVELS:
            yield level, open_session(source, level, threads=threads).run(feeds)


def _whole_runs(
    model: ir.Model, lesson: Lesson, threads: int, shipped: Shipped
) -> tuple[tuple[LevelInfo, ...], list[OutputRow]]:
    """Run the model from its inputs at both levels; its integers become outputs."""
    show(model, [t.tensor.quantized_name for t in lesson.tensors])
    levels, outputs = [], []
    for level, found in _runs(model, lesson.feeds, threads):
        # where default kernels saturate, the exact form gives other integers than the file
        if level is Level.OFF or this_cpu().exact:
            check_same(shipped[level], found, lesson.outputs, level)
        levels.append(_level_info(level, lesson.tensors, found))
        for name, ours in lesson.outputs.items():
            outputs.append(output_row(name, ours, found[name], level, None))
    return tuple(levels), outputs


def _level_info(
    level: Level, taught: Sequence[Taught], found: Mapping[str, NDArray[Any]]
) -> LevelInfo:
    total = equal = most = 0
    for item in taught:
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
