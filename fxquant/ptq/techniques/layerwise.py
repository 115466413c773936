"""What layer-by-layer techniques share: the walk, what it cost, and that an error changes nothing.

A technique is a function of one layer, called when all operands of the layer are at hand in the
float model and in the simulation, and before the simulation has computed the layer.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, fx, nn

from fxquant.calibrate import using_threads
from fxquant.editing import quantized_modules
from fxquant.errors import CalibrationError, ConfigError
from fxquant.nn.calibration import fit_biases
from fxquant.nn.modes import evaluating
from fxquant.ptq.dependent_positions import dependent_positions
from fxquant.ptq.layers import Layer, layers_of
from fxquant.ptq.originals import changing
from fxquant.ptq.snapshot import Snapshot, restore, snapshot
from fxquant.ptq.walk import Environment, FloatEnvironment, Walk
from fxquant.quantization.affine import AffineQuantizer

if TYPE_CHECKING:
    from pathlib import Path

    from fxquant.graph.selectors import Selector
    from fxquant.ptq.walk import Progress
    from fxquant.sim import QuantizationSimModel

    ForwardFn = Callable[[nn.Module, Any], Any]

T = TypeVar("T")


@dataclass(frozen=True)
class DataOptions:
    """How much of the data a technique looks at.

    Attributes:
        samples: samples of the data that are used; None: all.
        columns: positions of a layer's output that are looked at, over all samples.
        held_out: one of so many samples is held out to judge by.
        max_memory: bytes of values that are held in memory; the rest lies in files.
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
class Cost:
    """What a walk cost.

    Attributes:
        samples: samples that were used.
        seconds: CPU seconds in all.
        float_seconds: CPU seconds of the float model's own forward pass over these samples.
        peak_bytes: most bytes of values that were held in memory.
        written_bytes: bytes of values that were written to files.
    """

    samples: int = 0
    seconds: float = 0.0
    float_seconds: float = 0.0
    peak_bytes: int = 0
    written_bytes: int = 0

    def forward_equivalents(self, batch: int = 16) -> float:
        """What it cost, in forward passes of the float model over `batch` samples."""
        one = self.float_seconds * batch / max(self.samples, 1)
        return self.seconds / one if one > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"{self.samples} samples, {self.seconds:.1f} s of CPU: "
            f"{self.forward_equivalents():.0f} float forward passes of 16 samples"
        )


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
    layers: dict[fx.Node, Layer] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    @classmethod
    def of(
        cls,
        gm: fx.GraphModule,
        options: DataOptions | None,
        excluded: Iterable[Selector] | Selector | None = None,
    ) -> LayerWise:
        """The layers of a graph without those that selectors name."""
        layers, skipped = layers_of(gm)
        if excluded:
            named = quantized_modules(gm, excluded)
            skipped |= {n.path: "it is excluded" for n in layers.values() if n.path in named}
            layers = {k: v for k, v in layers.items() if v.path not in named}
        return cls(gm, options or DataOptions(), layers, skipped)

    def run(
        self, data: Any, visit: Callable[[Visit], T | None], progress: Progress | None = None
    ) -> list[T]:
        """Visit every layer; what a visit returns is collected."""
        given, cost, found = self.options, self.cost, list[T]()
        begin = time.process_time()
        exact, sim = FloatEnvironment(self.gm, "float"), Environment(self.gm, "simulation")
        with using_threads(given.threads), evaluating(self.gm), torch.no_grad():
            walk = Walk(
                self.gm, data, (exact, sim), samples=given.samples,
                max_memory=given.max_memory, folder=given.folder, progress=progress,
            )  # fmt: skip
            walk.counting = dependent_positions(walk, self.layers.values(), given.seed)
            for node in walk.nodes():
                start = time.process_time()
                walk.compute(node, exact)
                cost.float_seconds += time.process_time() - start
                if node in self.layers:
                    result = visit(Visit(self.layers[node], walk, sim, exact))
                    if result is not None:
                        found.append(result)
        cost.samples = sum(walk.samples)
        cost.seconds = time.process_time() - begin
        cost.peak_bytes, cost.written_bytes = walk.store.peak, walk.store.written
        return found


@contextmanager
def undone_on_error(sim: QuantizationSimModel) -> Iterator[Snapshot]:
    """Put a simulation back as it was if the block fails; yields what it was."""
    before = snapshot(sim)
    try:
        yield before
    except BaseException:
        restore(sim, before)
        raise


def require_simulation(sim: Any, technique: str) -> None:
    """Refuse what is no simulation.

    Raises:
        ConfigError: FXQ297.
    """
    if not isinstance(getattr(sim, "model", None), fx.GraphModule):
        what = f"{technique} was given a {type(sim).__name__} in the place of the simulation"
        fix = f"pass a QuantizationSimModel first: {technique}(sim, data)"
        raise ConfigError("FXQ297", what, fix=fix)


def batches(
    gm: nn.Module, data: Any, number: int | None = None, forward_fn: ForwardFn | None = None
) -> Any:
    """The first batches of data, as the walk takes them.

    Args:
        gm: the model that `forward_fn` calls.
        data: an iterable of batches.
        number: how many; None: all.
        forward_fn: `forward_fn(model, batch)` calls the model on a batch in its own way; what the
            model is called with is what counts.

    Raises:
        CalibrationError: FXQ455, there are fewer, or `forward_fn` does not call the model.
    """
    if number is None and forward_fn is None:
        return data
    if isinstance(data, Tensor):
        data = [data]
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes, Mapping, nn.Module)):
        return data  # the walk says what is wrong with it
    length = len(data) if isinstance(data, Sized) else None
    if number is not None and length is not None and 0 < length < number:
        what = f"num_batches is {number}, but the data are {length} batch(es)"
        raise CalibrationError("FXQ455", what, fix="pass more data, or a smaller num_batches")
    chosen = itertools.islice(data, number)
    return chosen if forward_fn is None else _captured(gm, chosen, forward_fn)


def _captured(gm: nn.Module, data: Iterable[Any], forward_fn: ForwardFn) -> Iterator[Any]:
    """What a function calls the model with, batch by batch."""
    names = [str(n.target).lstrip("*") for n in gm.graph.nodes if n.op == "placeholder"]  # type: ignore[union-attr]
    calls: list[dict[str, Any]] = []

    def seen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(dict(zip(names, args, strict=False)) | kwargs)

    for index, batch in enumerate(data):
        handle = gm.register_forward_pre_hook(seen, with_kwargs=True)
        try:
            with torch.no_grad():
                forward_fn(gm, batch)
        finally:
            handle.remove()
        if not calls:
            what = f"forward_fn did not call the model on batch {index}"
            raise CalibrationError("FXQ455", what, fix="call the model that it is given")
        yield from calls
        calls.clear()


def set_bias(layer: Layer, bias: Tensor) -> None:
    """Give a layer a bias, `[C]`; a range of the bias's own follows, if it may."""
    module = layer.module
    with torch.no_grad(), changing(module, "bias"):
        module.bias.copy_(bias)
    quantizer = module.param_quantizers._modules.get("bias")
    if isinstance(quantizer, AffineQuantizer) and quantizer.overwritable:
        with quantizer.compute_encodings():
            quantizer(module.bias.detach())
    fit_biases(module)
    module.drop_kept()
