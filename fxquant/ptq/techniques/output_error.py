"""How far the outputs of a simulation are from those of the float model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxquant.calibrate import using_threads
from fxquant.graph.pytree import tensors
from fxquant.nn.modes import evaluating
from fxquant.ptq.walking.walk import Environment, FloatEnvironment, Walk
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from fxquant.ptq.layer_walk import DataOptions


@dataclass(frozen=True)
class OutputErrors:
    """Errors of the outputs, relative to the outputs.

    Attributes:
        shares: of every output, the sum of squared errors over the sum of squares.
    """

    shares: tuple[float, ...]

    @property
    def total(self) -> float:
        """All outputs together."""
        return sum(self.shares)

    def is_no_worse(self, other: OutputErrors) -> bool:
        """Whether no output is farther off than in another state."""
        return all(a <= b for a, b in zip(self.shares, other.shares, strict=True))


def output_errors(gm: fx.GraphModule, data: Any, options: DataOptions) -> OutputErrors:
    """Compare a simulated graph with its float model.

    Args:
        gm: the graph.
        data: batches.
        options: its memory and threads.
    """
    exact, sim = FloatEnvironment(gm, "float"), Environment(gm, "simulation")
    sums: list[list[tuple[float, float]]] = []
    with using_threads(options.threads), evaluating(gm), torch.no_grad():
        walk = Walk(
            gm, data, (exact, sim), max_memory=options.max_memory, folder=options.folder
        )  # fmt: skip
        for node in walk.nodes():
            if node.op != "output":
                continue
            for environment in (exact, sim):
                walk.compute(node, environment)
            for batch in range(len(walk)):
                sums.append(_sums(*(walk.value(node, e, batch) for e in (exact, sim))))
    columns = zip(*sums, strict=True)
    pairs = [torch.tensor(column).sum(0).tolist() for column in columns]
    return OutputErrors(tuple(wrong / max(size, 1e-30) for wrong, size in pairs))


def _sums(wanted: Any, found: Any) -> list[tuple[float, float]]:
    """Of every output: squared error and square, summed."""
    result: list[tuple[float, float]] = []
    for a, b in zip(tensors(wanted), tensors(found), strict=True):
        if a.is_floating_point():
            first, second = (plain(t).double() for t in (a, b))
            result.append((_square(first - second), _square(first)))
    return result


def _square(x: Tensor) -> float:
    return float(x.square().sum())
