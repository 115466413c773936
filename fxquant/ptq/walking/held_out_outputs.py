"""How far a model's outputs are from the float model's, on samples that are held out of a walk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.func import functional_call

from fxquant.graph.node_walk import Environment
from fxquant.graph.pytree import tensors
from fxquant.nn import QuantizationMixin
from fxquant.nn.modes import quantization_off
from fxquant.ptq.walking.originals import float_values
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.ptq.walking.walk import Walk


class FloatWeights(Environment):
    """The simulation with the float values of its weights, and activations on their grids."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module without quantizers of parameters."""
        module = self.fetch_attr(str(target))
        if not isinstance(module, QuantizationMixin):
            return super().call_module(target, args, kwargs)
        with quantization_off(module.param_quantizers):
            # those that are shared, and tables, are rounded before they are computed with
            before = float_values(module)
            return (
                functional_call(module, before, args, kwargs) if before else module(*args, **kwargs)
            )


def output_errors(
    walk: Walk, node: fx.Node, exact: Environment, found: Sequence[Environment], held_out: int
) -> Tensor:
    """Errors of the outputs in some environments, as shares of the outputs' energy: float64 `[N]`.

    Args:
        walk: the walk, at its last node; all outputs weigh alike.
        node: that node.
        exact: the environment that the others are compared with.
        found: the others.
        held_out: one of so many samples is held out, as `Sampling` has it; where there is none, or
            a value is not one of samples, all of it counts.
    """
    sums: list[Tensor] = []
    before = walk.parts.samples_before
    for environment in (exact, *found):
        walk.compute(node, environment)
    for batch, samples in enumerate(walk.samples):
        numbers = torch.arange(before, before + samples)
        held = torch.nonzero(numbers % held_out == held_out - 1)[:, 0]
        if walk.parts.samples < held_out:
            held = torch.arange(samples)
        values = [tensors(walk.value(node, e, batch)) for e in (exact, *found)]
        outputs = zip(*values, strict=True)
        rows = [_energies([_part(t, held, samples) for t in same]) for same in outputs]
        sums.append(torch.stack(rows) if rows else torch.zeros(0, 1 + len(found)))
        before += samples
    own = {"errors": torch.stack(sums).sum(0).double()}
    every = [p["errors"] for p in walk.parts.from_each("errors of the outputs", own)]
    total = torch.stack(every).sum(0)
    return (total[:, 1:] / total[:, :1].clamp(min=1e-30)).sum(0)


def _part(value: Tensor, held: Tensor, samples: int) -> Tensor:
    value = plain(value)
    by_samples = value.dim() > 0 and len(value) == samples
    return value[held.to(value.device)] if by_samples else value


def _energies(values: Sequence[Tensor]) -> Tensor:
    """Of what is exact, and of the others' errors; zeros for what cannot be compared.

    That is what is no real number, and rows that values choose, where they have chosen others.
    """
    exact, *others = values
    if not exact.is_floating_point() or any(other.shape != exact.shape for other in others):
        return torch.zeros(len(values), dtype=torch.float64)
    found = [exact, *(other - exact for other in others)]
    return torch.stack([x.double().square().sum() for x in found]).cpu()
