"""The model's outputs on batches held out, against the float model's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor, fx

from fxquant.graph.pytree import fresh_inputs, tensors
from fxquant.ptq.walking.walk import FloatEnvironment
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T = TypeVar("_T")
_Changed = TypeVar("_Changed", contravariant=True)


class Put(Protocol[_Changed]):
    """Makes a change, or takes it back."""

    def __call__(self, change: _Changed, *, made: bool) -> None:
        """Do it."""


class OutputCheck:
    """Measures a simulation as it is now.

    Args:
        gm: the simulation's graph.
        inputs: values of the placeholders, batch by batch.

    Attributes:
        runs: how often the simulation was measured.
    """

    def __init__(self, gm: fx.GraphModule, inputs: Sequence[list[Any]]) -> None:
        self.gm = gm
        self.runs = 0
        self._inputs = inputs
        environment = FloatEnvironment(gm, "float")
        self._real = [self._outputs(environment.run, values) for values in inputs]

    def error(self) -> float:
        """Noise of the outputs as a share of their energy, summed over outputs."""
        self.runs += 1
        noise: dict[int, float] = {}
        energy: dict[int, float] = {}
        for real, values in zip(self._real, self._inputs, strict=True):
            for i, (a, b) in enumerate(zip(real, self._outputs(self.gm, values), strict=False)):
                if a.shape == b.shape:  # rows that values choose may be others
                    noise[i] = noise.get(i, 0.0) + float((b - a).double().square().sum())
                    energy[i] = energy.get(i, 0.0) + float(a.double().square().sum())
        return sum(noise[i] / energy[i] for i in noise if energy[i] > 0)

    def _outputs(self, run: Callable[..., Any], values: list[Any]) -> list[Tensor]:
        found = tensors(run(*fresh_inputs(values)))
        return [plain(t).float() for t in found if t.is_floating_point()]


def decibels(error: float) -> float:
    """Noise as a share of the signal, in dB."""
    return -10 * math.log10(error) if error > 0 else math.inf


def kept_parts(
    changes: Sequence[_T],
    put: Put[_T],
    check: OutputCheck,
    *,
    runs: int = 48,
) -> tuple[list[_T], float, float]:
    """Make changes that make the outputs better, all of them, or else the best parts of them.

    Args:
        changes: in the order of the graph.
        put: makes a change, or takes it back.
        check: measures the outputs.
        runs: measurements at most, beyond the first two.

    Returns:
        The changes that were made, and the error before and after.
    """
    before = best = check.error()
    kept: list[_T] = []
    parts = [list(changes)] if changes else []
    while parts and check.runs <= runs + 2:
        part = parts.pop(0)
        for change in part:
            put(change, made=True)
        error = check.error()
        if error < best:
            best = error
            kept += part
            continue
        for change in part:
            put(change, made=False)
        half = len(part) // 2
        parts += [p for p in (part[:half], part[half:]) if half]
    return kept, before, best
