"""The forced comparison on one input: every segment starts from the simulation's own integers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray
from torch import fx

from fxquant.errors import ExportError
from fxquant.graph.pytree import tensors
from fxquant.onnx.lowering.context import path_of
from fxquant.onnx.lowering.result import LoweredTensor
from fxquant.onnx.lowering.unsigned_products import exact_model
from fxquant.onnx.parity.error_analysis import Rounding
from fxquant.onnx.parity.error_bounds import (
    FLOAT_ISLAND_SLACK,
    FLOAT_SLACK,
    UNIT,
    Bound,
    Tolerance,
    bounds_of,
    magnitude,
    tolerances,
)
from fxquant.onnx.parity.index_choices import choosers
from fxquant.onnx.parity.index_choices import rows as choice_rows
from fxquant.onnx.parity.judge import classify, output_row, with_noise, without_noise
from fxquant.onnx.parity.report import REPORT_IT, ChoiceRow, OutputRow, TensorRow, verdict
from fxquant.onnx.parity.teacher_forcing import Reference, ReferenceRun, cut, teach
from fxquant.onnx.qdq import constant
from fxquant.onnx.runs.observed import bound_example
from fxquant.onnx.session import Level, as_feed, open_session, packed

if TYPE_CHECKING:
    from fxquant.onnx.lowering.result import Lowered

Example = tuple[tuple[Any, ...], Mapping[str, Any]]

LEVELS = (Level.OFF, Level.ALL)


@dataclass(frozen=True)
class Forced:
    """What was found on one input.

    Attributes:
        reference_run: what the simulation computed.
        tensors: one row a quantized tensor and level.
        choices: one row an argmax, topk or sort and level.
        outputs: one row an output and level.
    """

    reference_run: ReferenceRun
    tensors: tuple[TensorRow, ...]
    choices: tuple[ChoiceRow, ...]
    outputs: tuple[OutputRow, ...]

    @property
    def proven(self) -> bool:
        """Whether every difference is rounding or a tie."""
        exact = not any(row.unexplained for row in self.tensors)
        chosen = all(row.proven for row in self.choices)
        return exact and chosen and all(row.proven for row in self.outputs)

    def verdict(self) -> str:
        """What differs, for people; empty if nothing does."""
        return verdict(self.tensors, self.choices, self.outputs)[1]


def forced(
    gm: fx.GraphModule, lowered: Lowered, example: Example, path: str | Path, *, threads: int = 1
) -> Forced:
    """Compare a file with the simulation, segment by segment, in a form that this CPU runs exactly.

    Args:
        gm: the simulated model.
        lowered: its lowering, in that form.
        example: positional and keyword inputs.
        path: the file.
        threads: of onnxruntime.

    Raises:
        ExportError: onnxruntime cannot run the file, or the simulation itself is unsound.
    """
    model = exact_model(path)
    wanted = [*_computed(model, lowered), *_inputs(model, gm, lowered)]
    feeds = graph_feeds(gm, lowered, example)
    peaks = {name: magnitude(value) for name, value in feeds.items()}
    allowed = tolerances(model, [t.quantized_name for t in wanted], peaks)
    reference_run = teach(gm, example, wanted, allowed, choosers(model, lowered))
    reference_run.feeds = feeds
    reference_run.outputs = _named_outputs(lowered, reference_run)
    scores = bounds_of(model, [c.chooser.scores for c in reference_run.choices], peaks)
    bounds = _output_tolerances(model, reference_run, peaks)
    # an output that is a choice is judged as one
    bounds |= {
        c.chooser.places: math.inf for c in reference_run.choices if c.chooser.places in bounds
    }
    return _Judges(gm, reference_run, allowed, bounds, scores).compare(model, threads)


def graph_feeds(gm: fx.GraphModule, lowered: Lowered, example: Example) -> dict[str, NDArray[Any]]:
    """Inputs of the file by name.

    Raises:
        ExportError: FXQ564, the example has another number of tensors.
    """
    given = tensors(bound_example(gm, example))
    if len(given) != len(lowered.input_names):
        what = f"the model has {len(lowered.input_names)} inputs, the example {len(given)} tensors"
        raise ExportError("FXQ564", what, fix="pass every input the model was prepared with")
    return {name: as_feed(t) for name, t in zip(lowered.input_names, given, strict=True)}


def _named_outputs(lowered: Lowered, reference_run: ReferenceRun) -> dict[str, NDArray[Any]]:
    values, names = list(reference_run.outputs.values()), lowered.output_names
    if len(values) != len(names):
        what = f"the file has {len(names)} outputs, the simulation {len(values)}"
        raise ExportError("FXQ567", what, fix=REPORT_IT)
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
        what = f"{name!r} has no constant scale and zero point"
        fix = "give both as initializers: what is computed at run time cannot be proven"
        raise ExportError("FXQ568", what, at=node.name, fix=fix)
    return LoweredTensor(
        node=fx_name, index=index, module=name.removesuffix("_q"),
        float_name=real.name if real is not None else None, quantized_name=name,
        dequantized_name=None, scale=scale, zero_point=zero.numpy(), axis=None, block=None,
        dtype=zero.dtype, bits=int(zero.dtype.bitwidth), symmetric=False, kind="input",
    )  # fmt: skip


def _output_tolerances(
    model: ir.Model, reference_run: ReferenceRun, peaks: Mapping[str, float]
) -> dict[str, float]:
    """Relative difference that each float output may have when its segment is forced."""
    bounds = bounds_of(model, [v.name for v in model.graph.outputs], peaks)
    result = {}
    for name, value in reference_run.outputs.items():
        peak, bound = magnitude(value), bounds.get(name)
        if bound is None or bound.island:
            result[name] = FLOAT_ISLAND_SLACK
        else:
            result[name] = max(FLOAT_SLACK, bound.error / peak if peak else 0.0, 8 * UNIT)
    return result


@dataclass(frozen=True)
class _Judges:
    """What the differences of one input are judged by."""

    gm: fx.GraphModule
    reference_run: ReferenceRun
    allowed: Mapping[str, Tolerance]
    outputs: Mapping[str, float]
    scores: Mapping[str, Bound]

    def compare(self, model: ir.Model, threads: int) -> Forced:
        """Rows of every tensor, choice and output at both levels; the model is cut."""
        feeds = cut(model, self.reference_run)
        rounding = Rounding(model, feeds)
        nodes = {n.name: n for n in self.gm.graph.nodes}
        rows, choices, outputs = [], list[ChoiceRow](), []
        for level, found in runs(model, feeds, threads):
            for reference in self.reference_run.tensors:
                theirs = found[reference.tensor.quantized_name]
                row = self._row(reference, theirs, level, nodes)
                rows.append(without_noise(row, rounding, reference, theirs))
            choices += choice_rows(
                self.reference_run.choices, found, level.value, self.scores, rounding
            )
            for name, ours in self.reference_run.outputs.items():
                one = output_row(name, ours, found[name], level, self.outputs[name])
                outputs.append(with_noise(one, rounding, ours, found[name]))
        return Forced(self.reference_run, tuple(rows), tuple(choices), tuple(outputs))

    def _row(
        self,
        reference: Reference,
        runtime: NDArray[Any],
        level: Level,
        nodes: Mapping[str, fx.Node],
    ) -> TensorRow:
        tensor = reference.tensor
        source = nodes[tensor.node].meta.get("source")
        tally = classify(reference, runtime, self.allowed[tensor.quantized_name])
        return TensorRow(
            tensor.node, tensor.module, str(source) if source else "", level.value, **tally
        )


def runs(
    model: ir.Model, feeds: Mapping[str, NDArray[Any]], threads: int
) -> Iterator[tuple[Level, dict[str, NDArray[Any]]]]:
    """All outputs at each level, one after the other."""
    with packed(model) as source:
        for level in LEVELS:
            yield level, open_session(source, level, threads=threads).run(feeds)
