"""The stages that every model of the zoo goes through; runs in a process of its own."""

from __future__ import annotations

import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant import QuantizationSimModel, prepare_model
from fxquant.errors import FxQuantError
from fxquant.graph.meta import Spec, TensorSpec, spec
from fxquant.graph.pass_infra import state_of
from fxquant.graph.pytree import leaves
from fxquant.nn import QuantizationMixin
from fxquant.ops import row_of
from fxquant.prepare import call_arguments
from fxquant.tracing.replay import difference, other_batch, replay_equal, same_bits
from tests.zoo.entry import Entry

# what no graph can hold: such a model is rightly refused
REFUSALS = ("FXQ120", "FXQ122", "FXQ123")
_STAGES = ("prepared", "equal", "batch", "modules", "train", "integers", "simulated", "exported",
           "agrees")  # fmt: skip


@dataclass
class Result:
    """What happened to a model.

    Attributes:
        name: of the entry.
        package: of the entry.
        passed: stage -> whether it went well; a stage that was not reached is missing.
        reasons: stage -> why not, in one line.
        notes: decisions that Python took, operators that torch's exporter wrote.
        seconds: CPU seconds of `prepare_model`.
        operators: number of modules called in the prepared graph.
        refused: no graph can hold the model, and the error says so with the line and a fix.
    """

    name: str
    package: str
    passed: dict[str, bool] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    operators: int = 0
    refused: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def judge(self, stage: str, reason: str) -> None:
        """A stage is done; an empty reason means that it went well."""
        self.passed[stage] = not reason
        if reason:
            self.reasons[stage] = reason

    @property
    def whole(self) -> bool:
        """Whether every stage went well."""
        return all(self.passed.get(stage) for stage in _STAGES)


def limit_memory(gigabytes: float) -> None:
    """Let allocations fail beyond a limit, instead of the machine."""
    size = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def run(entry: Entry) -> Result:
    """All stages of one model; what fails ends it, with the reason in the result."""
    result = Result(entry.name, entry.package)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, inputs = entry.build()
        except Exception as error:  # foreign code may raise anything
            result.judge("prepared", f"not built: {_line(error)}")
            return result
        model.eval()
        _run_stages(result, model, inputs)
    return result


def _run_stages(result: Result, model: nn.Module, inputs: Any) -> None:
    stage = "prepared"
    try:
        prepared = _prepare(result, model, inputs)
        for stage, judge in (("equal", _equal), ("batch", _batch), ("modules", _modules)):
            result.judge(stage, judge(prepared, model, inputs))
        stage = "train"
        result.judge(stage, _train(prepared, model, inputs))
        model.eval()
        prepared.eval()
        stage = "simulated"
        sim = _simulate(prepared, inputs)
        result.judge("integers", _on_integers(sim.model))
        result.judge(stage, "")
        stage = "exported"
        _export(result, sim)
    except Exception as error:  # foreign code may raise anything
        code = getattr(error, "code", "")
        stage = "agrees" if code in ("FXQ560", "FXQ561") else stage
        if stage == "agrees":
            result.judge("exported", "")
        result.refused = code in REFUSALS
        result.judge(stage, _line(error))


def _line(error: Exception) -> str:
    text = str(error) if isinstance(error, FxQuantError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:400]


def _prepare(result: Result, model: nn.Module, inputs: Any) -> fx.GraphModule:
    start = time.process_time()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        prepared = prepare_model(model, inputs)
    result.seconds = time.process_time() - start
    result.notes += [
        " ".join(str(w.message).split())
        for w in found
        if w.category.__name__ == "SpecialisationWarning"
    ]
    result.judge("prepared", "")
    result.operators = sum(n.op == "call_module" for n in prepared.graph.nodes)
    return prepared


def _equal(prepared: fx.GraphModule, model: nn.Module, inputs: Any) -> str:
    return replay_equal(prepared, model, *call_arguments(inputs)).why


def _batch(prepared: fx.GraphModule, model: nn.Module, inputs: Any) -> str:
    other = other_batch(*call_arguments(inputs), seed=7)
    if other is None:
        return ""
    try:
        return replay_equal(prepared, model, *other).why
    except Exception:  # the model itself refuses another batch, in any way
        return ""


def _modules(prepared: fx.GraphModule, model: nn.Module, inputs: Any) -> str:
    """Functions on floating-point tensors and modules that are called twice."""
    calls = [n for n in prepared.graph.nodes if n.op == "call_module"]
    if len({str(n.target) for n in calls}) < len(calls):
        return "a module is called twice"
    moved = _from_values(prepared)
    left = [n for n in prepared.graph.nodes if n in moved and _is_float_function(n, prepared)]
    names = sorted({str(getattr(n.target, "__name__", n.target)) for n in left})
    return f"functions: {', '.join(names)}" if names else ""


def _from_values(prepared: fx.GraphModule) -> set[fx.Node]:
    """Nodes that compute with the values of inputs or parameters, not with sizes alone."""
    found: set[fx.Node] = set()
    for node in prepared.graph.nodes:
        sized = node.op == "call_method" and node.target == "size"
        given = node.op in ("placeholder", "get_attr")
        if given or (not sized and any(n in found for n in node.all_input_nodes)):
            found.add(node)
    return found


def _is_float_function(node: fx.Node, root: nn.Module) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    if node.op not in ("call_function", "call_method") or isinstance(node.target, type):
        return False  # a class makes the container of the outputs
    floats = any(_holds_float(spec(n)) for n in node.all_input_nodes)
    if name in ("getitem", "size"):
        return floats and row_of(node, root) is not None
    if node.target is getattr and not isinstance(spec(node.all_input_nodes[0]), TensorSpec):
        return False  # a field of a dataclass
    made_from_sizes = name.startswith("new_") or name.endswith("_like")
    return floats and _holds_float(spec(node)) and not made_from_sizes


def _holds_float(found: Spec) -> bool:
    if isinstance(found, TensorSpec):
        return found.dtype.is_floating_point
    if isinstance(found, dict):
        return any(map(_holds_float, found.values()))
    return isinstance(found, tuple | list) and any(map(_holds_float, found))


def _train(prepared: fx.GraphModule, model: nn.Module, inputs: Any) -> str:
    """Outputs and gradients in training mode, with the same random numbers."""
    try:
        theirs, expected = _trained(model, inputs)
    except Exception as error:  # the model itself cannot be trained on these inputs
        return "" if _raises_alike(prepared, inputs) else f"the model alone raises: {_line(error)}"
    ours, got = _trained(prepared, inputs)
    why = difference(ours, theirs)
    if why:
        return f"output{why}"
    for name, gradient in expected.items():
        other = got.get(name)
        if (gradient is None) != (other is None):
            return f"gradient of {name} is {'missing' if other is None else 'unexpected'}"
        if gradient is not None and other is not None and not same_bits(gradient, other):
            return f"gradient of {name} differs by {float((gradient - other).abs().max()):.3g}"
    return ""


def _raises_alike(prepared: nn.Module, inputs: Any) -> bool:
    try:
        _trained(prepared, inputs)
    except Exception:  # the model raised too
        return True
    return False


def _trained(model: nn.Module, inputs: Any) -> tuple[Any, dict[str, Tensor | None]]:
    args, kwargs = call_arguments(inputs)
    model.train()
    model.zero_grad()
    torch.manual_seed(1)
    # around fx.GraphModule.__call__, which prints a traceback of its own
    result = nn.Module.__call__(model, *args, **kwargs)
    total = sum(t.float().square().mean() for t in _learnable(result))
    if isinstance(total, Tensor):
        total.backward()
    return result, {n: p.grad for n, p in model.named_parameters()}


def _learnable(result: Any) -> Iterator[Tensor]:
    for _, leaf in leaves(result):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            yield leaf


def _simulate(prepared: fx.GraphModule, inputs: Any) -> QuantizationSimModel:
    prepared.zero_grad()
    sim = QuantizationSimModel(prepared, inputs, "tf")
    args, kwargs = call_arguments(inputs)
    call: Callable[[nn.Module, Any], Any] = lambda net, _: net(*args, **kwargs)  # noqa: E731
    sim.compute_encodings(call, None)
    with torch.no_grad():
        sim.model(*args, **kwargs)
    return sim


def _on_integers(model: fx.GraphModule) -> str:
    """Names of modules that put a grid on integers."""
    found = []
    for node in model.graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, QuantizationMixin):
            continue
        value = spec(node)
        single = isinstance(value, TensorSpec) or not isinstance(value, tuple | list)
        parts: list[Any] = [value] if single else list(value)
        quantized = module.output_quantizers._modules  # by the number of the output
        found += [
            str(node.target)
            for number, part in enumerate(parts)
            if quantized.get(str(number)) is not None and not _holds_float(part)
        ]
    return f"a grid on integers: {', '.join(found[:3])}" if found else ""


def _export(result: Result, sim: QuantizationSimModel) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = sim.export(folder, "model")
    result.judge("exported", "")
    result.judge("agrees", "" if report else "not proven")
    result.notes += [note for note in report.notes if "batch" not in note]
    if not state_of(sim.model).any_batch:
        result.notes.append("one batch size")
