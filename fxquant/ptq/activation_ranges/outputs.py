"""The model's outputs against the float model's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, fx, nn

from fxquant.graph.pytree import fresh_inputs, tensors
from fxquant.nn import QuantizationMixin
from fxquant.nn.modes import quantization_off
from fxquant.ptq.solving.real_gains import is_real_gain
from fxquant.ptq.walking.walk import FloatEnvironment
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fxquant.ptq.walking.value_store import ValueStore

# share of all noise that a change has to take away
_WORTHWHILE = 0.02
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
        batches: numbers of the batches that are looked at.
        inputs: reads values of the placeholders of a batch.
        store: where the float model's outputs are kept.
    """

    def __init__(
        self, gm: fx.GraphModule, batches: Sequence[int], inputs: Callable[[int], list[Any]],
        store: ValueStore,
    ) -> None:  # fmt: skip
        self.gm, self.batches = gm, batches
        self._inputs, self._store = inputs, store
        environment = FloatEnvironment(gm, "float")
        for batch in batches:
            if ("real", batch) not in store:
                store.put(("real", batch), self._outputs(environment.run, inputs(batch)))

    def activation_errors(self) -> Tensor:
        """The same with parameters in floating point: what the ranges of activations alone do."""
        modules = [m for m in self.gm.modules() if isinstance(m, QuantizationMixin)]
        quantizers = [q for m in modules for _, q in m.param_quantizers.active()]
        with quantization_off(nn.ModuleList(quantizers)):
            return self.errors()

    def errors(self) -> Tensor:
        """Noise of every row of the outputs as a share of their energy, `[N]`, in a fixed order.

        Rows are taken along the first dimension, all outputs and batches one behind the other.
        """
        energy: dict[int, float] = {}
        rows: list[tuple[int, Tensor]] = []
        for batch in self.batches:
            real, found = self._store.get(("real", batch)), self._inputs(batch)
            for i, (a, b) in enumerate(zip(real, self._outputs(self.gm, found), strict=False)):
                noise = a.new_zeros(len(a) if a.dim() else 1, dtype=torch.float64)
                if a.shape == b.shape:  # rows that values choose may be others
                    noise = (b - a).double().square().reshape(len(noise), -1).sum(1)
                    energy[i] = energy.get(i, 0.0) + float(a.double().square().sum())
                rows.append((i, noise))
        parts = [noise / energy[i] for i, noise in rows if energy.get(i, 0.0) > 0]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def _outputs(self, run: Callable[..., Any], values: list[Any]) -> list[Tensor]:
        found = tensors(run(*fresh_inputs(values)))
        return [plain(t).float() for t in found if t.is_floating_point()]


def kept_parts(
    changes: Sequence[_T],
    put: Put[_T],
    check: OutputCheck,
    glance: OutputCheck,
    *,
    runs: int = 48,
) -> tuple[list[_T], float, float]:
    """Make changes that make the outputs better, all of them, or else the best parts of them.

    Better is what other data would confirm, see `is_real_gain`. That is seen with parameters in
    floating point, as the noise of rounded ones hides what a range costs. But the gain has to be a
    part of all noise that is worth a risk, as a narrower range clips values that the data do not
    show, and the outputs with rounded parameters must not become worse.

    Args:
        changes: in the order of the graph.
        put: makes a change, or takes it back.
        check: measures the outputs.
        glance: the same on fewer samples; what gains nothing there is not measured on all.
        runs: changes and parts of them that are tried at most.

    Returns:
        The changes that were made, and the error before and after.
    """
    before = whole = float(check.errors().sum())
    least = _WORTHWHILE * float(glance.errors().sum())
    best, seen = check.activation_errors(), float(glance.activation_errors().sum())
    kept: list[_T] = []
    parts = [list(changes)] if changes else []
    for _ in range(runs):
        if not parts:
            break
        part = parts.pop(0)
        for change in part:
            put(change, made=True)
        glimpse = float(glance.activation_errors().sum())
        errors = check.activation_errors() if seen - glimpse > least else best
        gain = float(best.sum() - errors.sum())
        if gain > _WORTHWHILE * whole and is_real_gain(best, errors):
            found = float(check.errors().sum())
            if found <= whole:
                best, whole, seen = errors, found, glimpse
                kept += part
                continue
        for change in part:
            put(change, made=False)
        half = len(part) // 2
        parts += [p for p in (part[:half], part[half:]) if half]
    return kept, before, whole
