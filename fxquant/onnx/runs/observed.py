"""What a graph computes in several runs: shapes, dynamic dimensions, constants.

The graph runs at two batch sizes made of the example, and at the first of them with other values. A
dimension that differs with the batch follows it, one that differs with the values has a size of its
own, one that never differs is static, and a value that depends on no input *value* and is the same
every time is a constant (attention masks, position indices, shape arithmetic).

Where an operator says that values decide how large its result is (see `by_value`), more inputs are
tried until its size differs, then other values at the very place that decides: what follows such a
size is found whatever the example holds.

Why run and not infer: shape inference needs a rule for every operator and still does not know which
dimensions the program itself holds fixed; a few small runs answer for any operator.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxquant.errors import ExportError
from fxquant.graph.pytree import tensors
from fxquant.nn.modes import evaluating
from fxquant.nn.training_state import require_ended
from fxquant.onnx.runs.probe import Recorder, Trial, arguments_at
from fxquant.onnx.runs.value_dependent import SizeSource, following_values, size_sources
from fxquant.onnx.runs.varying import Varying, candidates, other_values
from fxquant.onnx.runs.visible_writes import preserved
from fxquant.tracing.signature import MissingInputError, placeholder_values

Example: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any]]

# what a model says when it insists on the batch size of its example
REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
_VARIANTS = 4  # of other values, before a size that they decide is taken as fixed


@dataclass(frozen=True)
class Dim:
    """A size that another run may have otherwise: `slope * symbol + start`.

    Attributes:
        symbol: "batch", or the name of a size that depends on values.

    >>> str(Dim(1, 0)), str(Dim(4, 1))
    ('batch', '4*batch+1')
    """

    slope: int
    start: int
    symbol: str = "batch"

    def __str__(self) -> str:
        text = self.symbol if self.slope == 1 else f"{self.slope}*{self.symbol}"
        return text if not self.start else f"{text}{self.start:+d}"

    @property
    def by_value(self) -> bool:
        """Whether it depends on values, not on the batch alone."""
        return self.symbol != "batch"


Size: TypeAlias = "int | Dim"
VARYING = object()  # spec of a number, not a size, that another run has otherwise


@dataclass(frozen=True)
class Shaped:
    """A tensor as all runs saw it."""

    shape: tuple[Size, ...]
    dtype: torch.dtype

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


@dataclass
class Recorded:
    """What is known of every node.

    Attributes:
        specs: node -> `Shaped`, `Dim`, a plain Python value, or containers of them.
        constants: node -> its value, where no input can change it.
        varying: what may have another size.
        trial: a run whose sizes tell most: what a single node is to be looked at with.
        drawing: nodes that drew random numbers.
    """

    varying: Varying
    trial: Trial
    specs: dict[fx.Node, Any] = field(default_factory=dict)
    constants: dict[fx.Node, Any] = field(default_factory=dict)
    drawing: set[fx.Node] = field(default_factory=set)


def record(gm: fx.GraphModule, example: Example, *, fixed: str = "") -> Recorded:
    """Run the graph on several inputs in evaluation mode and compare.

    Args:
        gm: graph; its training flags and buffers are as before afterwards.
        example: positional and keyword inputs.
        fixed: why the batch has to be that of the example; it is found by trying otherwise.

    Raises:
        ExportError: FXQ501, the example lacks an input; FXQ535, values decide how many items a
            value has.
        TrainingError: FXQ802, the graph is in the middle of training.
    """
    require_ended(gm)
    values = bound_example(gm, example)
    with preserved(gm), evaluating(gm, kept=True), torch.no_grad():
        return _Trials(gm, values, fixed).compared()


def bound_example(gm: fx.GraphModule, example: Example) -> list[Any]:
    """Values of the placeholders in order.

    Raises:
        ExportError: FXQ501, the example lacks an input.
    """
    args, kwargs = example
    holders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    try:
        return placeholder_values(holders, args, kwargs)
    except MissingInputError as error:
        what = f"the example has no value for input {error.name!r}"
        fix = "pass every input the model was prepared with"
        raise ExportError("FXQ501", what, at=error.holder, fix=fix) from None


def inputs_of(gm: fx.GraphModule, node: fx.Node, recorded: Recorded) -> tuple[Any, Any]:
    """Real arguments (args, kwargs) of one node, of the sizes that were recorded."""
    with preserved(gm), evaluating(gm, kept=True), torch.no_grad():
        return arguments_at(gm, node, recorded.trial)


class _Trials:
    """The runs of a graph.

    Attributes:
        runs: the first at the first batch size, the second at the second one where the batch may
            vary, the others at the first one with other values.
    """

    def __init__(self, gm: fx.GraphModule, values: list[Any], fixed: str = "") -> None:
        self.gm = gm
        self.values = values
        self.tainted = following_values(gm)
        self.sources = size_sources(gm, self.tainted)
        self.varying, self.runs = self._batch(fixed)
        self.first = self.runs[0]
        if self.sources or self.varying.batch is not None:
            self._values()
        self.symbols: dict[tuple[int, ...], str] = {}

    def compared(self) -> Recorded:
        """What the runs have in common."""
        best = max(self._at_first_size(), key=lambda run: min(self._counts(run), default=0))
        found = Recorded(self.varying, best.trial, drawing=self.first.draws.nodes)
        for node in self.gm.graph.nodes:
            found.specs[node] = self._merged(node.name, [run.specs[node] for run in self.runs])
            values = [run.values[node] for run in self.runs if node in run.values]
            if values and all(_same(values[0], v) for v in values[1:]):
                found.constants[node] = values[0]
        insisted = [s.consumer.name for s in self.sources if not self._varies(s)]
        found.varying = dataclasses.replace(
            self.varying, by_value=tuple(_origins(found.specs)), insisted=tuple(insisted)
        )
        return found

    # --- running -------------------------------------------------------------------------------

    def _run(self, trial: Trial) -> Recorder:
        counted: dict[fx.Node, Callable[[Any], Any]] = {s.node: s.count for s in self.sources}
        return Recorder(self.gm, trial, spec=_spec, tainted=self.tainted, counted=counted)

    def _batch(self, demand: str) -> tuple[Varying, list[Recorder]]:
        """Two runs whose batch sizes differ, or one on the example and why."""
        reasons, silent = [demand] if demand else [], None
        for varying in () if demand else candidates(self.values, choosing=bool(self.sources)):
            try:
                runs = [self._run(Trial(varying.resized(self.values, n))) for n in varying.sizes]
            except REFUSALS as error:
                # not an error: the run on the example tells whether the model is sound
                text = f"the model runs at the batch size of its example only: {error}"
                reasons.append(text)
                continue
            node = _other_structure(self.gm, *runs)
            if node is not None:
                reasons.append(f"the number of items in {node.name} follows the batch")
            elif _shapes(runs[0].specs[self._output]) != _shapes(runs[1].specs[self._output]):
                return varying, runs
            elif not varying.axes:
                silent = silent or (varying, runs)
        if silent is not None:
            return silent
        reason = reasons[0] if reasons else "no input has a first dimension"
        sizes = [t.shape[0] for t in tensors(self.values) if t.dim()]
        fixed = Varying(sizes[0] if sizes else None, reason=reason)
        return fixed, [self._run(Trial(self.values))]

    def _values(self) -> None:
        """Runs with other values: of the inputs, then at the places that decide sizes."""
        base = self.first.trial.values
        for variant in range(_VARIANTS if self.sources else 1):
            self._try(Trial(other_values(base, self.varying, variant)))
            if not self._open():
                return
        for variant in range(_VARIANTS):
            self._try(Trial(base, _replacing(self._open(), variant)))
        for source in self._open():
            for variant in range(_VARIANTS):
                self._try(Trial(base, _replacing([source], variant)))

    def _try(self, trial: Trial) -> None:
        """A further run; one that the model refuses says nothing about sizes."""
        try:
            run = self._run(trial)
        except REFUSALS:
            return
        node = _other_structure(self.gm, self.first, run)
        if node is not None:
            raise ExportError(
                "FXQ535", f"how many items {node.name} has depends on values of the inputs",
                at=node, fix="return one tensor whose size depends on them, not several",
            )  # fmt: skip
        self.runs.append(run)

    def _open(self) -> list[SizeSource]:
        """Sources of sizes that were the same in every run."""
        return [s for s in self.sources if not self._varies(s)]

    def _varies(self, source: SizeSource) -> bool:
        counts = {run.counts[source.node] for run in self._at_first_size()}
        return counts == {None} or len(counts) > 1

    def _counts(self, run: Recorder) -> Iterator[int]:
        return (run.counts[s.node] or 0 for s in self.sources)

    def _at_first_size(self) -> list[Recorder]:
        return [self.first, *self.runs[2 if self.varying.dynamic else 1 :]]

    @property
    def _output(self) -> fx.Node:
        found: fx.Node = next(n for n in self.gm.graph.nodes if n.op == "output")
        return found

    # --- comparing -----------------------------------------------------------------------------

    def _merged(self, name: str, specs: Sequence[Any]) -> Any:
        """One spec of those of all runs; sizes that differ become `Dim`."""
        first = specs[0]
        if isinstance(first, Shaped):
            columns = zip(*(s.shape for s in specs), strict=True)
            return Shaped(
                tuple(self._size(f"{name}_{i}", sizes) for i, sizes in enumerate(columns)),
                first.dtype,
            )
        if isinstance(first, Mapping):
            return {k: self._merged(f"{name}_{k}", [s[k] for s in specs]) for k in first}
        if isinstance(first, (list, tuple)):
            columns = zip(*specs, strict=True)
            parts = [self._merged(f"{name}_{i}", part) for i, part in enumerate(columns)]
            return parts if isinstance(first, list) else tuple(parts)
        if all(type(s) is int for s in specs):
            return self._size(name, tuple(specs))
        # a number that differs is computed when the model runs; its value here means nothing
        differs = isinstance(first, float) and any(s != first for s in specs[1:])
        return VARYING if differs else first

    def _size(self, name: str, sizes: tuple[int, ...]) -> Size:
        first = sizes[0]
        if all(s == first for s in sizes):
            return int(first)
        batch = self.varying.sizes
        if batch and all(s == first for s in sizes[2:]):
            slope = (sizes[1] - first) // (batch[1] - batch[0])
            return Dim(slope, first - slope * batch[0])
        # equal in every run: one size
        return Dim(1, 0, self.symbols.setdefault(sizes, name))


def _replacing(
    sources: list[SizeSource], variant: int
) -> dict[fx.Node, Callable[[Tensor], Tensor]]:
    """Other values for each source, so that no two choose equally many."""
    return {
        s.node: functools.partial(s.other, variant=variant + 2 * i) for i, s in enumerate(sources)
    }


def _origins(specs: Mapping[fx.Node, Any]) -> Iterator[str]:
    """Nodes whose size depends on values where no operand's does."""
    sized = {node for node, spec in specs.items() if any(_by_value(spec))}
    return (n.name for n in specs if n in sized and not sized.intersection(n.all_input_nodes))


def _by_value(spec: Any) -> Iterator[bool]:
    return (isinstance(s, Dim) and s.by_value for shape in _shapes(spec) for s in shape)


def _shapes(spec: Any) -> list[tuple[Size, ...]]:
    """Shapes of all tensors in a spec; numbers count as vectors of one size."""
    if isinstance(spec, Shaped):
        return [spec.shape]
    if isinstance(spec, Mapping):
        spec = list(spec.values())
    if isinstance(spec, (list, tuple)):
        return [shape for part in spec for shape in _shapes(part)]
    return [(spec,)] if isinstance(spec, (int, Dim)) else []


def _spec(value: Any) -> Any:
    """Tensors as `Shaped`; containers as plain dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return Shaped(tuple(value.shape), value.dtype)
    if is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _spec(getattr(value, f.name)) for f in fields(value) if hasattr(value, f.name)
        }
    if isinstance(value, Mapping):
        return {k: _spec(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_spec(v) for v in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value


def _other_structure(gm: fx.GraphModule, first: Recorder, second: Recorder) -> fx.Node | None:
    """A node whose value has more or fewer parts in the other run, or None."""
    return next((n for n in gm.graph.nodes if not _alike(first.specs[n], second.specs[n])), None)


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Shaped):
        return isinstance(b, Shaped) and a.rank == b.rank
    if isinstance(a, Mapping):
        return (
            isinstance(b, Mapping) and a.keys() == b.keys() and all(_alike(a[k], b[k]) for k in a)
        )
    if isinstance(a, (list, tuple)):
        same = isinstance(b, (list, tuple)) and len(a) == len(b)
        return same and all(map(_alike, a, b))
    return True


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype and _equal_values(a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(operator.eq(a, b))


def _equal_values(a: Tensor, b: Tensor) -> bool:
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True
    return torch.equal(a, b) or bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
