"""Examines any QDQ file, also one of another tool: what onnxruntime makes of it, node by node.

Three programs run the same file: onnxruntime without optimizations (what the file says),
onnxruntime as users run it (integer kernels), and the integer executor (what those kernels are
documented to compute). Each segment between quantized tensors starts from the integers of the
default run, so that a difference belongs to the node behind it and not to one before.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.errors import ExportError
from fxquant.io.text_tables import table
from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.integer.saturation import Saturation, describe
from fxquant.onnx.io.limits import require_runnable
from fxquant.onnx.io.reader import first_line, read_model, readable
from fxquant.onnx.lint.structure import SCALES, SHAPES, UNLOADED, Finding
from fxquant.onnx.lint.verify import REFUSED, VerifyReport, verify_file
from fxquant.onnx.lowering.unsigned_products import exact_model
from fxquant.onnx.ort.coverage import OperatorRow, coverage
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.ort.feeds import Data, Feeds, feeds_of, with_nan
from fxquant.onnx.parity.default_kernels import KernelRun, default_kernels
from fxquant.onnx.parity.error_bounds import Tolerance, magnitude, tolerances
from fxquant.onnx.parity.file_outputs import OutputExam, compared, unlike
from fxquant.onnx.session import Level, open_session, packed, show

_FORCED = ".given"
_REAL = ".real"
_WORST = 12
# errors of the lint without whose mending a file cannot be run, or has no grids to compare on
_MALFORMED = frozenset((REFUSED, UNLOADED, SCALES, SHAPES))


@dataclass(frozen=True)
class TensorExam:
    """One quantized tensor, computed from the default run's own integers before it.

    Attributes:
        name: the integers.
        node: name of the node that makes the value.
        operator: its type.
        elements: how many integers it has.
        exact: how many are the same without optimizations.
        tie: how many are one step apart where the value lies at a rounding boundary.
        drift: how many are one step apart elsewhere: a float island, or another rounding order.
        defect: how many are two steps or more apart: the kernel computes something else.
        max_steps: largest difference.
        executor: how many the integer executor computes as the default run does.
    """

    name: str
    node: str
    operator: str
    elements: int
    exact: int
    tie: int
    drift: int
    defect: int
    max_steps: int
    executor: int


@dataclass(frozen=True)
class Examination:
    """What was found; true when the file is well formed and its kernels compute what it says.

    Attributes:
        lint: what is wrong with the structure.
        operators: where each operator runs, and why not in integers.
        tensors: one row a quantized tensor that can be compared.
        outputs: whole runs.
        risks: kernels whose sums can saturate on x86 CPUs without VNNI.
        cpu: this CPU, and whether its integer products are exact.
        kernels: what default kernels make of the file, where some CPUs do not compute exactly.
        samples: rows of the first input.
    """

    lint: VerifyReport
    operators: tuple[OperatorRow, ...] = ()
    tensors: tuple[TensorExam, ...] = ()
    outputs: tuple[OutputExam, ...] = ()
    risks: tuple[Saturation, ...] = ()
    cpu: str = ""
    kernels: tuple[KernelRun, ...] = ()
    samples: int = 0

    def __bool__(self) -> bool:
        return bool(self.lint) and not any(t.defect for t in self.tensors)

    @property
    def executor_share(self) -> float:
        """Share of integers that the executor computes as the default run does."""
        total = sum(t.elements for t in self.tensors)
        return sum(t.executor for t in self.tensors) / total if total else 1.0

    def to_json(self) -> str:
        """The examination as JSON."""
        content = {
            "ok": bool(self),
            "lint": json.loads(self.lint.to_json())["findings"],
            "executor_share": self.executor_share,
            "cpu": self.cpu,
            "samples": self.samples,
        }
        for name in ("operators", "tensors", "outputs", "kernels", "risks"):
            content[name] = [dataclasses.asdict(row) for row in getattr(self, name)]
        return json.dumps(content, indent=2)

    def __str__(self) -> str:
        parts = [str(self.lint), self._coverage_text(), self._tensor_text(), self._output_text()]
        here = f"run on {self.cpu}" if self.cpu else ""
        return "\n\n".join(p for p in [*parts, self._risk_text(), here] if p)

    def _coverage_text(self) -> str:
        integer = sum(row.integer for row in self.operators)
        text = f"{integer} of {len(self.operators)} operators run in integer kernels"
        rest = [r for r in self.operators if not r.integer and r.reason]
        if not rest:
            return text
        shown = [(r.name, r.operator, r.reason) for r in rest[:_WORST]]
        return f"{text}; in floating point:\n{table(('node', 'operator', 'why'), shown)}"

    def _tensor_text(self) -> str:
        total = sum(t.elements for t in self.tensors)
        if not total:
            return ""
        exact = sum(t.exact for t in self.tensors)
        text = (
            f"{exact / total:.4%} of {total} integers are the same with and without optimizations, "
            f"{self.executor_share:.4%} are what the integer executor computes"
        )
        apart = [t for t in self.tensors if t.drift or t.defect or t.executor < t.elements]
        if not apart:
            return text
        worst = sorted(apart, key=lambda t: (-t.defect, -t.drift, t.executor - t.elements))
        heads = ("node", "operator", "tie", "drift", "defect", "max steps", "executor differs")
        rows = [
            (t.node, t.operator, t.tie, t.drift, t.defect, t.max_steps, t.elements - t.executor)
            for t in worst[:_WORST]
        ]
        return f"{text}; the worst:\n{table(heads, rows)}"

    def _output_text(self) -> str:
        heads = ("output", "default run against", "difference", "peak", "same label")
        rows = [
            (o.name, o.against, f"{o.difference:.3g}", f"{o.peak:.3g}",
             "" if o.labels is None else f"{o.labels:.2%}")
            for o in self.outputs
        ]  # fmt: skip
        return table(heads, rows) if rows else ""

    def _risk_text(self) -> str:
        if not self.risks:
            return ""
        rows = [
            (r.node, *_pairs(r), r.peak)
            for r in sorted(self.risks, key=lambda r: -r.share)[:_WORST]
        ]
        heads = ("node", "channels", "pairs of weights", "largest sum (32767 fits)")
        what = describe(self.risks, exact=not any(run.measured for run in self.kernels))
        return "\n".join([*map(str, self.kernels), what, table(heads, rows)])


def _pairs(risk: Saturation) -> tuple[str, str]:
    if risk.dynamic:
        return "two activations", "unknown"
    return f"{risk.channels} of {risk.of}", f"{risk.share:.2%}"


def examine(path: str | Path, data: Data) -> Examination:
    """Lint a QDQ file, run it in onnxruntime and in the integer executor, and compare.

    Args:
        path: the file.
        data: inputs by name or in order, or the path of an `.npz` file with them.

    Returns:
        What was found; of a malformed file only what is wrong with it.

    Raises:
        ExportError: FXQ511 or FXQ570 the file cannot be read, or onnxruntime cannot run it.
        ConfigError: FXQ583 the data cannot be read, FXQ584 it does not fit the inputs.
    """
    lint = verify_file(path, risks=False)  # they have a table of their own
    model = read_model(path)
    graph = model.graph
    feeds = feeds_of(graph, data)
    if broken := with_nan(feeds):
        what = f"the data holds NaN in {', '.join(broken)}: equal results say little"
        note = Finding("FXQ585", "warning", "", what, "give data as the model gets it")
        lint = VerifyReport((*lint.findings, note))
    if any(f.code in _MALFORMED for f in lint.errors):
        return Examination(lint)  # there is nothing to compare, and onnxruntime may even crash
    with readable(path):
        require_runnable(path, model, feeds)
    refused = _refused(path)
    if refused is not None:
        return Examination(VerifyReport((*lint.findings, refused)))
    control = [node for node in graph if _holds_graphs(node)]
    if control:
        what = f"{control[0].op_type} holds a graph of its own: nothing is compared"
        note = Finding("FXQ578", "note", str(control[0].name), what, "export without control flow")
        return Examination(VerifyReport((*lint.findings, note)), coverage(path))
    # with the runtime's own float operators, so that a difference belongs to an integer kernel
    executor = IntegerModel(path, islands="onnxruntime", cpu="here")
    samples = next((len(x) for x in feeds.values() if x.ndim), 0)
    tensors, wrong = _tensors(path, feeds)
    return Examination(
        lint=VerifyReport((*lint.findings, *wrong)),
        operators=coverage(path),
        tensors=tuple(tensors),
        outputs=tuple(compared(path, executor, feeds)),
        risks=executor.saturations(),
        cpu=str(this_cpu()),
        kernels=default_kernels(path, feeds),
        samples=samples,
    )


def _holds_graphs(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(a.type in kinds for a in node.attributes.values())


def _refused(path: str | Path) -> Finding | None:
    """What onnxruntime has against the file."""
    try:
        open_session(path, Level.ALL)
    except ExportError as error:
        fix = "mend the errors above, or write the file with another version of the operators"
        return Finding("FXQ571", "error", "", first_line(error), fix)
    return None


# --- segments ------------------------------------------------------------------------------------


def _tensors(path: str | Path, feeds: Feeds) -> tuple[list[TensorExam], list[Finding]]:
    """Rows of every quantized tensor that can be looked at without changing what runs.

    And errors: outputs that the executor computes otherwise from the same integers.

    They are about exact integer kernels; what those of this CPU lose has rows of its own.
    """
    model = exact_model(path)
    executor = IntegerModel(model, islands="onnxruntime", cpu="here")
    producers = {v.name: node for node in model.graph for v in node.outputs}
    names = [n for n in executor.visible_names if _is_quantized(producers[n])]
    peaks = {n: magnitude(x) for n, x in feeds.items()}
    allowed = tolerances(model, names, peaks)
    given = _shown(path, names, feeds)
    segments = _cut(model, names)
    fed = feeds | {n + _FORCED: given[n] for n in names}
    with packed(segments) as source:
        fused = open_session(source, Level.ALL).run(fed)
    ours = IntegerModel(segments, islands="onnxruntime", cpu="here").run(fed)
    wrong = [unlike(n, fused[n], ours[n]) for n in executor.output_names]
    real = _with_real_values(segments, names)
    with packed(real) as source:
        plain = open_session(source, Level.OFF).run(fed)
    rows = []
    for name in names:
        boundary = _distance(producers[name], plain[name + _REAL])
        same = int((ours[name] == fused[name]).sum())
        rows.append(
            _row(producers[name], (fused[name], plain[name]), boundary, allowed[name], same)
        )
    return rows, [found for found in wrong if found is not None]


def _is_quantized(node: ir.Node) -> bool:
    """Whether it is a QuantizeLinear with one scale for the whole tensor."""
    scale = node.inputs[1] if node.op_type == "QuantizeLinear" else None
    return scale is not None and scale.const_value is not None and scale.const_value.size == 1


def _shown(path: str | Path, names: Sequence[str], feeds: Feeds) -> Feeds:
    """The integers of the default run."""
    model = exact_model(path)
    show(model, names)
    with packed(model) as source:
        return open_session(source, Level.ALL).run(feeds)


def _cut(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The model with a graph input in front of every consumer of these tensors; in place."""
    graph = model.graph
    values = {v.name: v for node in graph for v in node.outputs}
    for name in names:
        value = values[name]
        producer = value.producer()
        zero = producer.inputs[2] if producer is not None and len(producer.inputs) > 2 else None
        dtype = value.dtype or (zero.dtype if zero is not None else None) or ir.DataType.UINT8
        fed = ir.Value(name=name + _FORCED, type=ir.TensorType(dtype))
        fed.shape = ir.Shape(value.shape) if value.shape is not None else None
        graph.inputs.append(fed)
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, fed)
    show(model, names)
    return model


def _with_real_values(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that also returns what goes into each QuantizeLinear."""
    copy = model.clone()
    graph = copy.graph
    values = {v.name: v for node in graph for v in node.outputs}
    for name in names:
        producer = values[name].producer()
        source = producer.inputs[0] if producer is not None else None
        made = ir.node("Identity", [source], name=f"{name}{_REAL}")
        made.outputs[0].name = f"{name}{_REAL}"
        made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.append(made)
        graph.outputs.append(made.outputs[0])
    return copy


def _distance(node: ir.Node, real: NDArray[Any]) -> NDArray[Any]:
    """How far each value lies from a rounding boundary, in steps."""
    value = node.inputs[1]
    tensor = value.const_value if value is not None else None
    scale = np.float32(1.0) if tensor is None else tensor.numpy().reshape(())
    with np.errstate(invalid="ignore", over="ignore"):  # of infinite values
        position = real / scale
        return np.asarray(np.abs(position - np.floor(position) - np.float32(0.5)))


def _row(
    node: ir.Node, both: tuple[NDArray[Any], NDArray[Any]], distance: NDArray[Any],
    allowed: Tolerance, executor: int,
) -> TensorExam:  # fmt: skip
    steps = np.abs(both[0].astype(np.int64) - both[1].astype(np.int64))
    one = steps == 1
    tie = one & (distance <= allowed.tie)
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    return TensorExam(
        name=str(node.outputs[0].name),
        node=str(source.name) if source is not None else str(node.name),
        operator=source.op_type if source is not None else node.op_type,
        elements=steps.size,
        exact=int((steps == 0).sum()),
        tie=int(tie.sum()),
        drift=int((one & ~tie).sum()),
        defect=int((steps > 1).sum()),
        max_steps=int(steps.max(initial=0)),
        executor=executor,
    )
