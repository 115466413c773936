"""validate_model: the guidelines of a quantizable network, violations with place and fix.

A check only looks at the recorded graph. The network itself runs once, to be recorded; a prepared
network does not even do that.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn

from fxquant import ops
from fxquant.errors import Report, TraceError
from fxquant.graph.kept_state import random_numbers_kept
from fxquant.graph.meta import TensorSpec, computes_floats, module_path, source, spec
from fxquant.graph.pass_infra import set_state, state_of
from fxquant.graph.pytree import leaves
from fxquant.graph.selectors import Selector, select
from fxquant.io.text_tables import table
from fxquant.nn.modes import evaluating
from fxquant.nn.opaque import Opaque
from fxquant.prepare import SpecialisationWarning, call_arguments, is_prepared, prepare_model
from fxquant.tracing.record import check_model, record
from fxquant.tracing.replay import other_values, replay_equal

Severity: TypeAlias = Literal["error", "warning", "note"]
Consequence: TypeAlias = Literal["blocks", "narrows", "repaired"]

_PREPARE = "run prepare_model(model, dummy_input) first"
_CONSTANT = "pass it through attributes, or know that the graph keeps it as it is"
_SHOWN = 60
_EFFECTS = ("blocks", "narrows", "repaired", "warning", "note")
_MEANINGS = {
    "blocks": "that keep the model from being quantized",
    "narrows": "where the graph keeps what Python decided on the example: use a typical one",
    "repaired": "that preparation repairs by itself, before quantizing",
}
_TRIES = 8  # other inputs on which a graph with decisions is compared


@dataclass(frozen=True)
class Finding:
    """One violation of a guideline, or one thing worth knowing.

    Attributes:
        code: stable identifier of the guideline.
        severity: "error" breaks a step that follows, "warning" may, "note" does not.
        what: one sentence.
        node: name in the graph.
        module: path of the module.
        at: the user's file and line.
        fix: what to do about it.
        consequence: what an error means for quantizing: it "blocks"; or it is "repaired" by
            `prepare_model`; or it "narrows" what the graph holds for to inputs like the example.
    """

    code: str
    severity: Severity
    what: str
    node: str = ""
    module: str = ""
    at: str = ""
    fix: str = ""
    consequence: Consequence = "blocks"

    @property
    def effect(self) -> str:
        """The consequence of an error; else the severity."""
        return self.consequence if self.severity == "error" else self.severity


Check: TypeAlias = Callable[[fx.GraphModule], Iterable[Finding]]


@dataclass(frozen=True)
class ValidationReport(Report[Finding]):
    """Findings of all guidelines. It is true when the model, as it is, breaks none.

    A model that breaks some may still be quantized: `QuantizationSimModel` and `quantize` prepare
    it, and most of what they meet is repaired then. `blocking` has what keeps it from that.

    Example:
        >>> report = validate_model(nn.Sequential(nn.ReLU()), torch.ones(1, 2))
        >>> bool(report), str(report)
        (True, 'the model follows all guidelines')
    """

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """Errors that keep the model from being quantized."""
        return self._with("blocks")

    @property
    def repaired(self) -> tuple[Finding, ...]:
        """Errors that `prepare_model` repairs by itself."""
        return self._with("repaired")

    def _with(self, effect: str) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.effect == effect)

    def __str__(self) -> str:
        if not self.findings:
            return "the model follows all guidelines"
        order = sorted(self.findings, key=lambda f: _EFFECTS.index(f.effect))
        heads = ("code", "effect", "what", "module", "line")
        rows = [(f.code, f.effect, f.what, f.module, f.at) for f in order]
        more = [f"and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
        fixes = dict.fromkeys((f.code, f.fix) for f in order if f.fix)
        advice = [f"{code}: {fix}" for code, fix in fixes]
        return "\n".join([table(heads, rows[:_SHOWN]), *more, *advice, *self._legend()])

    def _legend(self) -> Iterator[str]:
        for effect, meaning in _MEANINGS.items():
            count = len(self._with(effect))
            if count:
                yield f"{effect}: {count} finding(s) {meaning}"
        if not self.blocking:
            yield "nothing blocks quantization"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        found = [{**asdict(f), "effect": f.effect} for f in self.findings]
        return {"valid": bool(self), "blocked": bool(self.blocking), "findings": found}

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=2)


class ModelValidator:
    """Runs checks on models; each validator has a list of its own.

    Args:
        checks: the checks to begin with; default: all guidelines.

    Example:
        >>> validator = ModelValidator()
        >>> validator.add_check(lambda gm: [Finding("X1", "note", f"{len(gm.graph.nodes)} nodes")])
        >>> print(validator.validate_model(nn.ReLU(), torch.ones(1)).findings[-1].what)
        3 nodes
    """

    def __init__(self, checks: Iterable[Check] | None = None) -> None:
        self.checks = list(GUIDELINES if checks is None else checks)

    def add_check(self, check: Check) -> None:
        """Add a check: a function from a recorded graph to findings."""
        self.checks.append(check)

    def validate_model(
        self,
        model: nn.Module,
        dummy_input: Any,
        *,
        modules_to_exclude: Iterable[Selector] | Selector = (),
    ) -> ValidationReport:
        """Look at a model; see `validate_model`."""
        args, kwargs = call_arguments(dummy_input)
        if is_prepared(model) and isinstance(model, fx.GraphModule):
            gm = model
        else:
            if not isinstance(model, nn.Module):  # other faults of a model are findings
                check_model(model)
            excluded = select(model, modules_to_exclude)
            try:
                with random_numbers_kept(), evaluating(model):
                    recording = record(model, args, kwargs, leaves=lambda p, _: p in excluded)
            except TraceError as e:
                return ValidationReport((_from_error(e),))
            gm = recording.graph_module
            set_state(gm, specialisations=recording.specialisations)
        return ValidationReport(tuple(f for check in self.checks for f in check(gm)))


def validate_model(
    model: nn.Module, dummy_input: Any, *, modules_to_exclude: Iterable[Selector] | Selector = ()
) -> ValidationReport:
    """Whether a model follows the guidelines of quantization, and where not.

    Args:
        model: a model, prepared or not.
        dummy_input: a tensor, a tuple of positional inputs or a dict of keyword inputs.
        modules_to_exclude: modules that are not looked into: instances, classes, paths with `*`.

    Returns:
        A report that is truthy when no guideline is broken, prints as a table and gives JSON.

    Raises:
        SelectorError: an entry of `modules_to_exclude` matches nothing.
    """
    return ModelValidator().validate_model(
        model, dummy_input, modules_to_exclude=modules_to_exclude
    )


def validate_preparation(model: nn.Module, dummy_input: Any) -> ValidationReport:
    """Whether a model can be quantized as it is: the guidelines, and whether it can be prepared.

    Args:
        model: a model, prepared or not.
        dummy_input: a tensor, a tuple of positional inputs or a dict of keyword inputs.

    Returns:
        The report of `validate_model`, with what was seen by preparing as errors that block: that
        it failed, or that Python decides otherwise on other inputs.
    """
    report = validate_model(model, dummy_input)
    if report.blocking:
        return report
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpecialisationWarning)  # they are findings here
            prepared = prepare_model(model, dummy_input)
    except TraceError as error:
        return ValidationReport((*report.findings, _from_error(error)))
    left = (f for check in GUIDELINES for f in check(prepared) if f.effect == "blocks")
    return ValidationReport((*report.findings, *left, *_otherwise(prepared, model, dummy_input)))


def _otherwise(gm: fx.GraphModule, model: nn.Module, dummy_input: Any) -> Iterator[Finding]:
    """Where a graph with decisions on values differs from its model on other values."""
    decided = [s for s in state_of(gm).specialisations if s.kind == "value"]
    args, kwargs = call_arguments(dummy_input)
    for seed in range(_TRIES if decided else 0):
        with evaluating(model), evaluating(gm):
            try:
                found = replay_equal(gm, model, *other_values(args, kwargs, seed=seed))
            except Exception:  # a model may refuse made-up inputs in any way
                continue
        if not found:
            what = f"Python decides otherwise on other inputs, and the graph does not: {found.why}"
            path, line = decided[0].module_path, str(decided[0].source or "")
            fix = 'keep the module whole: on_specialisation="leaf" or modules_to_exclude'
            yield Finding("FXQ139", "error", what, "", path, line, fix)
            return


def _from_error(error: TraceError) -> Finding:
    return Finding(
        error.code, "error", error.what, at=str(error.at or ""), fix=str(error.fix or "")
    )


def _finding(
    code: str,
    severity: Severity,
    node: fx.Node,
    what: str,
    fix: str = "",
    *,
    then: Consequence = "blocks",
) -> Finding:
    path = str(node.target) if node.op == "call_module" else module_path(node)
    return Finding(code, severity, what, node.name, path, str(source(node) or ""), fix, then)


# --- the guidelines ------------------------------------------------------------------------------


def functionals(gm: fx.GraphModule) -> Iterator[Finding]:
    """Tensor operations that are functions, operators or methods instead of modules."""
    then: Consequence = "blocks" if is_prepared(gm) else "repaired"
    for node in gm.graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        row = ops.row_of(node, gm)
        if row is not None:
            what = f"{row.name} is called as a function ({_spelled(node)})"
            reasons = [s.reason for s in state_of(gm).skips if s.node == node.name]
            if reasons:  # preparation left it so
                fix = "write the result to a new tensor, or keep the module whole"
                why = f"{row.name} could not become a module: {reasons[-1]}"
                yield _finding("FXQ137", "warning", node, why, fix)
            else:
                yield _finding("FXQ130", "error", node, what, _PREPARE, then=then)


def reused_modules(gm: fx.GraphModule) -> Iterator[Finding]:
    """Modules that are called more than once."""
    then: Consequence = "blocks" if is_prepared(gm) else "repaired"
    calls: dict[int, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(id(gm.get_submodule(str(node.target))), []).append(node)
    for nodes in calls.values():
        if len(nodes) > 1:
            what = f"module {nodes[0].target!r} is called {len(nodes)} times"
            yield _finding("FXQ131", "error", nodes[1], what, _PREPARE, then=then)


def decisions(gm: fx.GraphModule) -> Iterator[Finding]:
    """Python that decided on the value of a tensor, a size that may change, or on training."""
    state = state_of(gm)
    for found in state.specialisations:
        line = str(found.source or "")
        if found.kind == "value":
            what = f"Python decides on a tensor's value ({found.what})"
            fix = 'keep the module whole: on_specialisation="leaf" or modules_to_exclude'
            yield Finding("FXQ132", "error", what, "", found.module_path, line, fix, "narrows")
        elif found.kind == "training":
            what = "it computes something else in training than the graph does"
            fix = "if the graph shall train, keep the module whole: modules_to_exclude"
            yield Finding("FXQ138", "warning", what, "", found.module_path, line, fix)
        elif not state.any_batch:
            what = f"the graph holds for this batch size only ({found.what})"
            fix = "compute with tensors what the line computes with sizes"
            yield Finding("FXQ133", "error", what, "", found.module_path, line, fix, "narrows")
        else:
            what = f"Python decides on a size ({found.what})"
            yield Finding("FXQ133", "note", what, "", found.module_path, line)


def inputs_and_outputs(gm: fx.GraphModule) -> Iterator[Finding]:
    """Inputs and outputs that are no tensors."""
    for node in gm.graph.nodes:
        if node.op == "placeholder" and not isinstance(spec(node), TensorSpec):
            kind = type(spec(node)).__name__
            what = f"input {node.target!r} is no tensor but of type {kind}"
            yield _finding("FXQ134", "note", node, what, _CONSTANT)
    output = gm.graph.output_node()
    for path, leaf in leaves(output.args[0]):
        if not isinstance(leaf, fx.Node) or not isinstance(spec(leaf), TensorSpec):
            what = f"output {path or 0} is no tensor"
            yield _finding("FXQ134", "note", output, what, _CONSTANT)


def operators_without_row(gm: fx.GraphModule) -> Iterator[Finding]:
    """Operations that fxquant does not know: they stay in floating point."""
    for node in gm.graph.nodes:
        if not computes_floats(node) or ops.row_of(node, gm) is not None:
            continue
        name = _spelled(node)
        if node.op == "call_module":
            module = gm.get_submodule(str(node.target))
            name = module.name if isinstance(module, Opaque) else type(module).__name__
        what = f"{name} has no row in the operator table and stays in floating point"
        yield _finding("FXQ135", "note", node, what, "register_op(Op(...)) gives it a row")


def dtypes(gm: fx.GraphModule) -> Iterator[Finding]:
    """Floating-point types other than float32."""
    for node in gm.graph.nodes:
        found = spec(node)
        if node.op == "output" or not isinstance(found, TensorSpec):
            continue
        if not found.dtype.is_floating_point or found.dtype is torch.float32:
            continue
        if any(_dtype(n) is found.dtype for n in node.all_input_nodes):
            continue  # told where it began
        name = str(found.dtype).removeprefix("torch.")
        fix = "compute in float32: model.float(), or .to(torch.float32) at this line"
        yield _finding("FXQ136", "warning", node, f"the value is {name}", fix)


def _dtype(node: fx.Node) -> torch.dtype | None:
    found = spec(node)
    return found.dtype if isinstance(found, TensorSpec) else None


def _spelled(node: fx.Node) -> str:
    if node.op == "call_method":
        return f".{node.target}()"
    return str(getattr(node.target, "__name__", node.target))


GUIDELINES: tuple[Check, ...] = (
    functionals,
    reused_modules,
    decisions,
    inputs_and_outputs,
    operators_without_row,
    dtypes,
)
