"""The layers of a simulated graph, one after the other, with what a technique needs at each.

A technique is a function of one layer, called when all operands of the layer are at hand in the
float model and in the simulation, and before the simulation has computed the layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from fxquant.calibrate import using_threads
from fxquant.editing import quantized_modules
from fxquant.errors import ConfigError
from fxquant.nn.modes import evaluating
from fxquant.ptq.dependent_positions import dependent_positions
from fxquant.ptq.layers.layer_search import layers_of
from fxquant.ptq.layers.recurrent_layers import RecurrentLayer
from fxquant.ptq.layers.tied_layers import TiedLayer
from fxquant.ptq.sampling import Sampling
from fxquant.ptq.walking.value_store import returning_freed
from fxquant.ptq.walking.walk import Environment, FloatEnvironment, Walk
from fxquant.ptq.walking.walk_cost import Cost
from fxquant.ptq.working_memory import copied_bytes, warn_if_too_small, working_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import fx

    from fxquant.graph.selectors import Selector
    from fxquant.ptq.layers.layer import Layer
    from fxquant.ptq.walking.parts_of_data import WholeData
    from fxquant.ptq.walking.walk import Progress

T = TypeVar("T")
# copies of a layer's input that are in memory together while rows of it are gathered
_READ = 5
#: layer, positions of its output that are looked at -> bytes
Working = Callable[["Layer", int], int]
#: node, walk, environment of the simulation, environment of the float model
Settle = Callable[["fx.Node", Walk, Environment, FloatEnvironment], object]


@dataclass(frozen=True)
class DataOptions:
    """How much of the data a technique looks at.

    Attributes:
        samples: samples of the data that are used; None: all.
        columns: positions of a layer's output that are looked at, over all samples.
        held_out: one of so many samples is held out to judge by.
        max_memory: bytes of the values between layers together with what a layer is computed and
            solved with; values beyond that lie in files. The least is two copies of the parameters,
            one batch of a layer's values, and its matrices: about 16 bytes for each pair of inputs
            of an output and 50 to 70 for each weight.
        folder: where these files are.
        seed: of every choice.
        threads: of torch; 1 gives the same result on every machine; None: as they are.
    """

    samples: int | None = 256
    columns: int = 8192
    held_out: int = 8
    max_memory: int | None = None
    folder: str | Path | None = None
    seed: int = 0
    threads: int | None = 1

    def __post_init__(self) -> None:
        require_number("samples", self.samples, 1, none=True)
        require_number("columns", self.columns, 1)
        require_number("held_out", self.held_out, 2)
        limit: Any = self.max_memory
        if limit is not None and not (isinstance(limit, int | float) and limit > 0):
            what = f"the option max_memory of a technique is {limit!r}"
            raise ConfigError("FXQ296", what, fix="pass a number of bytes")


def require_number(name: str, value: Any, least: int, *, none: bool = False) -> None:
    """Refuse what is no whole number from `least` on.

    Raises:
        ConfigError: FXQ296.
    """
    if none and value is None:
        return
    if type(value) is not int or value < least:
        what = f"the option {name} of a technique is {value!r}"
        raise ConfigError("FXQ296", what, fix=f"pass a number from {least} on")


@dataclass
class Visit:
    """A layer that is about to be computed in the simulation.

    Attributes:
        layer: the layer.
        walk: values of its operands.
        sim: the environment of the simulation.
        float: the environment of the float model, which has computed the layer.
    """

    layer: Layer
    walk: Walk
    sim: Environment
    float: FloatEnvironment


@dataclass
class LayerWise:
    """The layers of a simulated graph, one after the other.

    Attributes:
        gm: the graph.
        options: how much of the data is looked at.
        layers: layers that are visited.
        skipped: why other quantized weights are left as they are, by path.
        cost: what the walk cost.
    """

    gm: fx.GraphModule
    options: DataOptions
    layers: list[Layer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    @classmethod
    def of(
        cls,
        gm: fx.GraphModule,
        options: DataOptions | None,
        excluded: Iterable[Selector] | Selector | None = None,
        *,
        tied: bool = True,
    ) -> LayerWise:
        """The layers of a graph without those that selectors name; see `layers_of`."""
        layers, skipped = layers_of(gm, tied=tied)
        if excluded:
            named = quantized_modules(gm, excluded)
            for layer in list(layers):
                modules = layer.modules
                if not named.keys().isdisjoint(modules.values()):
                    skipped |= dict.fromkeys(modules, "its weight is that of an excluded layer")
                    skipped |= {p: "it is excluded" for p, m in modules.items() if m in named}
                    layers.remove(layer)
        return cls(gm, options or DataOptions(), layers, skipped)

    def run(
        self,
        data: Any,
        visit: Callable[[Visit], T | None],
        progress: Progress | None = None,
        begin: Callable[[Walk], object] = lambda _: None,
        parts: WholeData | None = None,
        *,
        settle: Settle = lambda *_: None,
        beside: Sequence[Environment] = (),
        working: Working = working_bytes,
    ) -> list[T]:
        """Visit every layer; what a visit returns is collected.

        Args:
            data: an iterable of batches, as for `Walk`.
            visit: called with each layer.
            progress: as for `Walk`.
            begin: called with the walk before its first node.
            parts: of which the data are one, as for `Walk`.
            settle: called with each node before the simulation computes it, behind the visit of its
                layer if it is one.
            beside: further environments; they compute a node before its layer is visited.
            working: what a visit takes beside the values of one batch.
        """
        given, cost, found = self.options, self.cost, list[T]()
        started = time.process_time()
        exact, sim = FloatEnvironment(self.gm, "float"), Environment(self.gm, "simulation")
        sampling = Sampling(given.columns, given.held_out, given.seed)
        copies = copied_bytes(self.gm)
        # matrices alone, as nothing is known of the data
        needs = {layer.path: working(layer, 0) for layer in self.layers}
        warn_if_too_small(given.max_memory, needs, copies)
        with (
            using_threads(given.threads), evaluating(self.gm), torch.no_grad(),
            returning_freed(given.max_memory),
        ):  # fmt: skip
            walk = Walk(
                self.gm, data, (exact, sim, *beside), samples=given.samples,
                max_memory=given.max_memory, folder=given.folder, progress=progress, parts=parts,
            )  # fmt: skip
            begin(walk)
            uses = [use for layer in self.layers for use in layer.uses]
            walk.counting = dependent_positions(walk, uses, given.seed)
            with walk.store.reserving(copies):
                for node in walk.nodes():
                    start = time.process_time()
                    walk.compute(node, exact)
                    cost.float_seconds += time.process_time() - start
                    for environment in beside:
                        walk.compute(node, environment)
                    for layer in self._at(node):
                        need = working(layer, _positions(layer, walk, exact, sampling))
                        with walk.store.reserving(need + _one_batch(node, walk, sim)):
                            result = visit(Visit(layer, walk, sim, exact))
                        if result is not None:
                            found.append(result)
                        for path in layer.modules.values():
                            exact.renew(path)
                    settle(node, walk, sim, exact)
        cost.seconds = time.process_time() - started
        _add_cost_of(walk, cost)
        return found

    def _at(self, node: fx.Node) -> list[Layer]:
        """The layers that are decided before a node is computed."""
        return [layer for layer in self.layers if layer.first is node]


def _positions(layer: Layer, walk: Walk, environment: Environment, sampling: Sampling) -> int:
    """Positions of a layer that are looked at, at most."""
    most = sampling.positions(layer)
    if isinstance(layer, TiedLayer | RecurrentLayer):
        return most  # its outputs are not there yet, or are others than the node's
    keys = [(environment.name, layer.node, batch) for batch in range(len(walk))]
    groups, outputs, _ = layer.shape
    # a number has two bytes or more
    return min(most, sum(map(walk.store.size_of, keys)) // (2 * groups * outputs))


def _add_cost_of(walk: Walk, cost: Cost) -> None:
    store = walk.store
    cost.samples, cost.max_memory = sum(walk.samples), store.max_memory
    cost.peak_bytes, cost.written_bytes, cost.least_bytes = store.peak, store.written, store.least


def _one_batch(node: fx.Node, walk: Walk, environment: Environment) -> int:
    """Bytes of the operands of a node in one batch: as they are read, rounded and padded."""
    operands = [
        [(environment.name, n, batch) for n in node.all_input_nodes] for batch in range(len(walk))
    ]
    return _READ * max(sum(map(walk.store.size_of, keys)) for keys in operands)
