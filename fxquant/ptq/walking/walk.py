"""One walk over a graph with several environments at once, node after node, all data at each node.

An environment is the same graph computed in another way, such as in floating point and in the
simulation. At a node every environment holds the values of all its operands, for all batches: what
the node is made of can be looked at in both, changed, and then computed. Values are freed at their
last use, and lie in files beyond a limit of memory.

Why node after node and not batch after batch: a layer that is changed feeds the layers behind it,
and computing the network anew for every layer would cost the square of its depth.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.calibrate import is_iterable_of_batches
from fxquant.errors import CalibrationError, FxQuantError
from fxquant.graph.node_walk import Environment, last_uses
from fxquant.graph.pytree import fresh_inputs, samples_of, tensors
from fxquant.nn import QuantizationMixin
from fxquant.ptq.walking.originals import float_module
from fxquant.ptq.walking.parts_of_data import WholeData
from fxquant.ptq.walking.stored_batches import StoredBatches
from fxquant.ptq.walking.value_store import ValueStore
from fxquant.tracing.signature import MissingInputError, input_name, mismatch, placeholder_values

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Environment", "FloatEnvironment", "Progress", "Walk", "taking_batch"]

Progress = Callable[[int, int], None]

# memory that a node is computed with, in sizes of its operands: themselves, where they lay in
# files, on their grid, the result and its own, and what operators and quantizers keep meanwhile
_AROUND = 6


class FloatEnvironment(Environment):
    """The graph without quantizers, with the float values of parameters that techniques changed.

    Args:
        gm: the graph.
        name: how its values are told from those of other environments.
        paths: modules that are computed so, all others as they are; None: all.
    """

    def __init__(self, gm: fx.GraphModule, name: str, paths: Collection[str] | None = None) -> None:
        super().__init__(gm, name)
        self._paths = paths

    @functools.cached_property
    def _plain(self) -> dict[str, nn.Module]:
        # when the first one is called: they have the training flags of that moment
        return {
            path: float_module(module)
            for path, module in self.module.named_modules()
            if isinstance(module, QuantizationMixin)
            and (self._paths is None or path in self._paths)
        }

    def renew(self, path: str) -> None:
        """Take the float values of a module anew: a technique has changed it before it was called.

        The same parameter may belong to a module that comes later.
        """
        if path in self._plain:
            self._plain[path] = float_module(self.module.get_submodule(path))  # type: ignore[arg-type]

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module without its quantizers."""
        plain = self._plain.get(str(target))
        if plain is None:
            return super().call_module(target, args, kwargs)
        return plain(*args, **kwargs)


class Walk:
    """Walks a graph; see the module's docstring.

    Args:
        gm: the graph.
        data: an iterable of batches: a tensor, a tuple or list of positional inputs (what exceeds
            the number of inputs, such as labels, is left out) or a dict of keyword inputs; a
            tensor alone is one batch.
        environments: ways to compute it.
        samples: samples that are enough; no further batch is asked for then.
        max_memory: bytes of values in memory; None: no limit.
        folder: where values beyond that are written; the system's temporary folder by default.
        progress: called after each node with (nodes done, nodes in all).
        first: number of the first batch, for errors.
        parts: of which these data are one; None: they are all.

    Attributes:
        samples: number of samples of each batch.
        store: the values.
        writes: whether a node writes into its operands.
        counting: positions of layers that count, see `dependent_positions`; missing where all do.
        parts: which part of all data these are.

    Raises:
        CalibrationError: FXQ442 there are no data, FXQ443 `data` is no iterable of batches, FXQ444
            a batch lacks an input, FXQ445 it holds NaN.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        data: Any,
        environments: Sequence[Environment],
        *,
        samples: int | None = None,
        max_memory: int | None = None,
        folder: str | Path | None = None,
        progress: Progress | None = None,
        first: int = 0,
        parts: WholeData | None = None,
    ) -> None:
        self.gm, self.environments = gm, tuple(environments)
        self.store = ValueStore(max_memory, folder)
        self.samples: list[int] = []
        self._given: list[dict[str, Any]] = []
        self.counting: Mapping[tuple[fx.Node, int], Tensor] = {}
        self._progress, self._first = progress, first
        self._nodes: list[fx.Node] = list(gm.graph.nodes)
        self._holders = [n for n in self._nodes if n.op == "placeholder"]
        self._last = last_uses(self._nodes)
        self.writes = any(ops.is_inplace(n) for n in self._nodes)
        self._collect(data, samples)
        self.parts = parts or WholeData()
        self.parts.begin(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def _collect(self, data: Any, most: int | None) -> None:
        for values, count in bound_batches(self.gm, data, most):
            for holder, value in zip(self._holders, values, strict=True):
                self.store.put(("", holder, len(self)), value)
            given = zip(self._holders, values, strict=True)
            self._given.append({str(h.target): _without_data(v) for h, v in given})
            self.samples.append(count)

    def inputs(self, batch: int) -> list[Any]:
        """Values of the placeholders in order, before they were walked past."""
        return [self.store.get(("", holder, batch)) for holder in self._holders]

    def nodes(self) -> Iterator[fx.Node]:
        """Every node in order; operands are at hand, the node itself is yet to be computed.

        What the caller has not computed with `compute` is computed when it asks for the next node.
        """
        with self.store:
            for done, node in enumerate(self._nodes):
                yield node
                for environment in self.environments:
                    self.compute(node, environment)
                self._forget_weight(node)
                for past in self._last.get(node, ()):
                    self._drop(past)
                self.store.return_freed()
                if self._progress is not None:
                    self._progress(done + 1, len(self._nodes))

    def given(self) -> Iterator[Any]:
        """The data: values of the graph's inputs, batch by batch, until they are freed."""
        for batch in range(len(self)):
            yield from self.inputs(batch)

    def compute(self, node: fx.Node, environment: Environment) -> None:
        """Compute a node for all batches, unless it has been."""
        for batch in range(len(self)):
            key = (environment.name, node, batch)
            if key not in self.store:
                self.store.put(key, self._computed(node, environment, batch))

    def operands(
        self, node: fx.Node, environment: Environment, batch: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of a node."""
        read = lambda n: self.store.get((environment.name, n, batch))  # noqa: E731
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), read)
        return tuple(args), dict(kwargs)

    def value(self, node: fx.Node, environment: Environment, batch: int) -> Any:
        """The value of a node that was computed."""
        return self.store.get((environment.name, node, batch))

    def _computed(self, node: fx.Node, environment: Environment, batch: int) -> Any:
        if node.op == "placeholder":
            value = self.store.get(("", node, batch))
            # a graph that writes must not write into the user's data
            return fresh_inputs(value) if self.writes else value
        given = self.operands(node, environment, batch)
        if node.op == "output":
            return given[0][0]
        return self.computed(node, environment, batch, given)

    def computed(
        self, node: fx.Node, environment: Environment, batch: int,
        operands: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> Any:  # fmt: skip
        """What an environment makes of operands, such as those of another one; it is not kept.

        Raises:
            CalibrationError: FXQ441, the node does not take them.
        """
        around = _AROUND * sum(t.nbytes for t in tensors(operands))
        with (
            self.store.reserving(around),
            taking_batch(self.gm, self._given[batch], self._first + batch, at=node),
        ):
            return environment.compute(node, *operands)

    def _forget_weight(self, node: fx.Node) -> None:
        """Drop the quantized weights that a module keeps, where memory is limited."""
        if node.op == "call_module" and self.store.max_memory is not None:
            module = self.gm.get_submodule(str(node.target))
            if isinstance(module, QuantizationMixin):
                module.drop_kept()

    def _drop(self, node: fx.Node) -> None:
        for name in ("", *(e.name for e in self.environments)):
            for batch in range(len(self)):
                self.store.drop((name, node, batch))


def batch_walks(
    gm: fx.GraphModule,
    data: Any,
    environments: Sequence[Environment],
    *,
    samples: int | None = None,
    progress: Progress | None = None,
    **store: Any,
) -> Iterator[Walk]:
    """A walk for every batch, each to be gone through before the next one is asked for.

    What only looks at values, and changes nothing, needs those of one batch at a time.

    Args:
        gm: as for `Walk`.
        data: as for `Walk`.
        environments: as for `Walk`.
        samples: as for `Walk`.
        progress: called after each node of each batch with (done, in all).
        store: `max_memory` and `folder`, as for `Walk`.

    Raises:
        CalibrationError: as for `Walk`.
    """
    batches: Any = named_batches(gm, data, samples)
    batches = list(batches) if isinstance(data, list | tuple) else batches
    nodes = len(gm.graph.nodes)

    def tell(done: int, _: int) -> None:
        if progress is not None:
            progress(number * nodes + done, len(stored) * nodes)

    limit, folder = store.get("max_memory"), store.get("folder")
    with StoredBatches(batches, limit, folder) as stored:
        for number, batch in enumerate(stored):
            yield Walk(gm, [batch], environments, progress=tell, first=number, **store)


@contextmanager
def taking_batch(
    gm: fx.GraphModule, given: Mapping[str, Any] | Sequence[Any], batch: int, at: Any = None
) -> Iterator[None]:
    """What a model raises inside on a batch that it does not take says which batch, and why.

    Args:
        gm: the graph.
        given: values of its inputs, by name or in order.
        batch: its number.
        at: the node that is computed; None: the inputs are named.

    Raises:
        CalibrationError: FXQ441, the model does not take the batch.
    """
    try:
        yield
    except (FxQuantError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        by_name, in_order = (given, ()) if isinstance(given, Mapping) else ({}, given)
        found = mismatch(gm, in_order, by_name, error)
        what = f"the model does not take batch {batch}: {found.what}"
        raise CalibrationError("FXQ441", what, at=at or found.at, fix=found.fix) from error


def _without_data(value: Any) -> Any:
    """Tensors by type and shape alone: what a message says once their values are freed."""
    return fx.node.map_aggregate(
        value,
        lambda v: v.detach().to("meta") if isinstance(v, Tensor) else v,
    )


def bound_batches(
    gm: fx.GraphModule, data: Any, most: int | None = None, *, nan: bool = False
) -> Iterator[tuple[list[Any], int]]:
    """Batches as values of the graph's inputs in order, and the samples that each holds.

    Args:
        gm: the graph.
        data: as for `Walk`.
        most: samples that are enough; no further batch is asked for then.
        nan: whether batches may hold NaN.

    Raises:
        CalibrationError: FXQ442 to FXQ445, as for `Walk`.
    """
    holders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    seen = batches = 0
    for batch in _iterated(data):
        values = _bound(holders, batch)
        count = samples_of(list(values))
        if count == 0:
            continue
        if not nan:
            _refuse_nan(holders, values, batches)
        yield values, count
        seen, batches = seen + count, batches + 1
        if most is not None and seen >= most:
            break
    if not batches:
        raise _no_data()


def named_batches(gm: fx.GraphModule, data: Any, most: int | None) -> Iterator[dict[str, Any]]:
    """What `bound_batches` gives, as batches of keyword inputs."""
    names = [input_name(n) for n in gm.graph.nodes if n.op == "placeholder"]
    for values, _ in bound_batches(gm, data, most):
        yield dict(zip(names, values, strict=True))


def first_batch(data: Any) -> tuple[Any, Any]:
    """The first batch, and data that still hold it.

    Raises:
        CalibrationError: FXQ442 or FXQ443, as for `Walk`.
    """
    batches = iter(_iterated(data))
    for first in batches:
        return first, data if batches is not data else itertools.chain([first], batches)
    raise _no_data()


def _no_data() -> CalibrationError:
    what, fix = "there are no data: no batch holds a sample", "pass a non-empty loader"
    return CalibrationError("FXQ442", what, fix=fix)


def _iterated(data: Any) -> Iterable[Any]:
    if isinstance(data, Tensor):
        return [data]
    if not is_iterable_of_batches(data):
        what = f"data are a {type(data).__name__}, not an iterable of batches"
        raise CalibrationError("FXQ443", what, fix="pass a list of batches, or a loader")
    return data  # type: ignore[no-any-return]


def _bound(holders: Sequence[fx.Node], batch: Any) -> list[Any]:
    """Values of the placeholders in order."""
    args = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    named: Mapping[str, Any] = {}
    if isinstance(batch, Mapping):
        args, named = (), batch
    try:
        return placeholder_values(holders, args, named)
    except MissingInputError as error:
        what = f"a batch has no value for input {error.name!r}"
        fix = "pass every input the model was prepared with"
        raise CalibrationError("FXQ444", what, at=error.holder, fix=fix) from None


def _refuse_nan(holders: Sequence[fx.Node], values: Sequence[Any], batch: int) -> None:
    """Infinity may be meant, as in a mask; where it reaches a layer it is refused there."""
    for holder, value in zip(holders, values, strict=True):
        for tensor in tensors(value):
            if tensor.is_floating_point() and bool(tensor.isnan().any()):
                what = f"batch {batch} holds NaN"
                raise CalibrationError("FXQ445", what, at=holder, fix="clean the data")
