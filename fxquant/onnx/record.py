"""What a graph computes at two batch sizes: shapes, dynamic dimensions, constants.

The graph runs twice on rows of the example. A dimension that differs is dynamic, one that does not
is static, and a value that depends on no input *value* and is the same both times is a constant
(attention masks, position indices, shape arithmetic).

Why run and not infer: shape inference needs a rule for every operator and still does not know which
dimensions the program itself holds fixed; two small runs answer for any operator.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxquant.errors import ExportError
from fxquant.graph import hooks
from fxquant.graph.evaluation import evaluating
from fxquant.graph.structure import map_leaves, tensors
from fxquant.onnx.writes import preserved, writes_somewhere

Example: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any]]

# 1 would hide dimensions behind broadcasting
_BATCHES = (2, 3)
# what a model says when it insists on the batch size of its example
_REFUSALS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)
_SHAPE_METHODS = frozenset({"size", "dim", "numel", "ndimension", "nelement", "element_size"})
_LIKE = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})
_LIKE_FUNCTIONS = (torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, len)
_SHAPE_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "is_cuda"})


@dataclass(frozen=True)
class Dim:
    """A size that follows the batch: `slope * batch + start`.

    >>> str(Dim(1, 0)), str(Dim(4, 1))
    ('batch', '4*batch+1')
    """

    slope: int
    start: int

    def __str__(self) -> str:
        text = "batch" if self.slope == 1 else f"{self.slope}*batch"
        return text if not self.start else f"{text}{self.start:+d}"


Size: TypeAlias = "int | Dim"
VARYING = object()  # spec of a number, not a size, that follows the batch


@dataclass(frozen=True)
class Shaped:
    """A tensor as both runs saw it."""

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
        batch: whether the batch is dynamic.
        reason: why it is not.
    """

    specs: dict[fx.Node, Any] = field(default_factory=dict)
    constants: dict[fx.Node, Any] = field(default_factory=dict)
    batch: bool = True
    reason: str = ""


def record(gm: fx.GraphModule, example: Example, *, fixed: str = "") -> Recorded:
    """Run the graph at two batch sizes in evaluation mode and compare.

    Args:
        gm: graph; its training flags and buffers are as before afterwards.
        example: positional and keyword inputs.
        fixed: why the batch cannot be dynamic; the graph then runs on the example only.

    Raises:
        ExportError: FXQ501, the example lacks an input.
    """
    values = bound_example(gm, example)
    tainted = _tainted(gm)
    with preserved(gm), evaluating(gm), torch.no_grad():
        runs, reason = ([], fixed) if fixed else _two_runs(gm, values, tainted)
        if runs and (node := _other_structure(gm, *runs)) is not None:
            runs, reason = [], f"the number of items in {node.name} follows the batch"
        if not runs:
            runs = [_run(gm, values, tainted)]
    return _compared(gm, runs, reason)


def bound_example(gm: fx.GraphModule, example: Example) -> list[Any]:
    """Values of the placeholders in order.

    Raises:
        ExportError: FXQ501, the example lacks an input.
    """
    args, kwargs = example
    holders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    values = []
    for i, holder in enumerate(holders):
        name = str(holder.target).lstrip("*")
        if i < len(args):
            values.append(args[i])
        elif name in kwargs:
            values.append(kwargs[name])
        elif holder.args:
            values.append(holder.args[0])
        else:
            raise ExportError("FXQ501", f"the example has no value for input {name!r}", at=holder,
                              fix="pass every input the model was prepared with")  # fmt: skip
    return values


def batch_size(values: Any) -> int | None:
    """First dimension of the first tensor that has one."""
    return next((t.shape[0] for t in tensors(values) if t.dim()), None)


def at_batch(values: Any, batch: int, wanted: int) -> Any:
    """The same inputs with `wanted` rows, taken in turn from the rows they have."""

    def rows(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if not leaf.dim() or leaf.shape[0] != batch:
            return leaf
        return leaf[torch.arange(wanted, device=leaf.device) % batch]

    return map_leaves(values, rows)


def inputs_of(gm: fx.GraphModule, node: fx.Node, example: Example) -> tuple[Any, Any]:
    """Real arguments (args, kwargs) of one node at the first batch size."""
    values = bound_example(gm, example)
    batch = batch_size(values)
    if batch is not None:
        values = at_batch(values, batch, _BATCHES[0])
    with preserved(gm), evaluating(gm), torch.no_grad():
        catcher = _Catcher(gm, node)
        try:
            catcher.run(*values)
        except _CaughtError as caught:
            return caught.found
    raise ExportError("FXQ502", "the node is never reached", at=node)


def _two_runs(
    gm: fx.GraphModule, values: list[Any], tainted: set[fx.Node]
) -> tuple[list[_Recorder], str]:
    batch = batch_size(values)
    if batch is None:
        return [], "no input has a first dimension"
    try:
        return [_run(gm, at_batch(values, batch, n), tainted) for n in _BATCHES], ""
    except _REFUSALS as error:
        # not an error: the single run on the example that follows tells whether the model is sound
        return [], f"the model runs at the batch size of its example only: {error}"


def _run(gm: fx.GraphModule, values: list[Any], tainted: set[fx.Node]) -> _Recorder:
    recorder = _Recorder(gm, tainted)
    recorder.run(*values)
    return recorder


class _Recorder(fx.Interpreter):
    """Keeps the spec of every value, and the values that no input can change."""

    def __init__(self, gm: fx.GraphModule, tainted: set[fx.Node]) -> None:
        super().__init__(gm)
        # the errors of a refused batch are expected
        self.extra_traceback = False
        self.tainted = tainted
        self.writes = writes_somewhere(gm)
        self.specs: dict[fx.Node, Any] = {}
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.specs[n] = _spec(value)
        if n not in self.tainted and n.op != "output":
            self.values[n] = map_leaves(value, _copied if self.writes else _plain)
        return value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        if not hooks.hooked(module):
            return module(*args, **kwargs)
        with hooks.around(module, functools.partial(_watching_only, str(target))):
            return module(*args, **kwargs)


def _watching_only(path: str, key: int, hook: Any, module: Any, *given: Any) -> Any:
    """Run a hook; it may look but not change what goes into or comes out of its module."""
    before = [t._version for t in tensors(given)]
    result = hook(module, *given)
    if hooks.replaced(result, given) or before != [t._version for t in tensors(given)]:
        raise ExportError(
            "FXQ532",
            f"the forward hook {hooks.name_of(hook)!r} changes what {path!r} computes",
            at=path,
            fix="register it before prepare_model, which makes it a part of the graph",
        )
    return result


class _CaughtError(Exception):
    def __init__(self, found: tuple[Any, Any]) -> None:
        super().__init__("found")
        self.found = found


class _Catcher(fx.Interpreter):
    """Stops at one node and hands out its arguments."""

    def __init__(self, gm: fx.GraphModule, wanted: fx.Node) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self.wanted = wanted

    def run_node(self, n: fx.Node) -> Any:
        if n is self.wanted:
            raise _CaughtError(self.fetch_args_kwargs_from_env(n))
        return super().run_node(n)


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


def _plain(value: Any) -> Any:
    return value.detach().as_subclass(Tensor) if isinstance(value, Tensor) else value


def _copied(value: Any) -> Any:
    """A value that a later write does not change."""
    return _plain(value).clone() if isinstance(value, Tensor) else value


def _tainted(gm: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose value depends on the value, not only on the shape, of an input."""
    tainted: set[fx.Node] = set()
    for node in gm.graph.nodes:
        follows = any(n in tainted for n in node.all_input_nodes) and not _reads_shape(node)
        if node.op == "placeholder" or follows:
            tainted.add(node)
    return tainted


def _reads_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target) in _SHAPE_METHODS | _LIKE
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _SHAPE_ATTRIBUTES
    return node.target in _LIKE_FUNCTIONS


def _compared(gm: fx.GraphModule, runs: list[_Recorder], reason: str) -> Recorded:
    first, second = runs[0], runs[-1]
    found = Recorded(batch=len(runs) == 2, reason=reason)
    for node in gm.graph.nodes:
        found.specs[node] = _merged(first.specs[node], second.specs[node])
        if node in first.values and _same(first.values[node], second.values[node]):
            found.constants[node] = first.values[node]
    return found


def _other_structure(gm: fx.GraphModule, first: _Recorder, second: _Recorder) -> fx.Node | None:
    """A node whose value has more or fewer parts at the other batch size, or None."""
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


def _merged(a: Any, b: Any) -> Any:
    """One spec of the two runs'; sizes that differ become `Dim`."""
    if isinstance(a, Shaped):
        sizes = zip(a.shape, b.shape, strict=True)
        return Shaped(tuple(_merged_size(x, y) for x, y in sizes), a.dtype)
    if isinstance(a, Mapping):
        return {k: _merged(a[k], b[k]) for k in a}
    if isinstance(a, (list, tuple)):
        parts = [_merged(x, y) for x, y in zip(a, b, strict=True)]
        return parts if isinstance(a, list) else tuple(parts)
    if type(a) is int and type(b) is int:
        return _merged_size(a, b)
    # a number that differs is computed when the model runs; its value here means nothing
    return VARYING if isinstance(a, float) and a != b else a


def _merged_size(a: Any, b: Any) -> Size:
    if a == b:
        return int(a)
    low, high = _BATCHES
    slope = (b - a) // (high - low)
    return Dim(slope, a - slope * low)


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


def forward_names(gm: fx.GraphModule) -> list[str]:
    """Names of the graph's inputs as the user's forward calls them."""
    known = set(inspect.signature(gm.forward).parameters)
    holders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    return [str(n.target).lstrip("*") if n.target not in known else str(n.target) for n in holders]
