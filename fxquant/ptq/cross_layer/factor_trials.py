"""Factors tried on data: what a simulation with them puts out, against the float model.

What rounding does in the end is more than a sum of independent errors, so what was computed from
ranges is not believed until it was measured.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxquant.calibrate import calibrate
from fxquant.nn.modes import evaluating
from fxquant.ptq.activation_ranges.outputs import OutputCheck
from fxquant.ptq.cross_layer.channel_spaces import ChannelSpaces
from fxquant.ptq.solving.real_gains import is_real_gain
from fxquant.ptq.walking.value_store import ValueStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

    from fxquant.ptq.float_graphs.planned_grids import GridRequest

# one of so many samples is judged by; what the noise has to fall to for a change to be made
_HELD_OUT, _WORTHWHILE = 4, 0.95


def best_factors(
    gm: fx.GraphModule,
    request: GridRequest,
    batches: Sequence[list[Any]],
    tried: Sequence[Tensor],
) -> Tensor:
    """The factors with the least noise of the outputs; the first ones, unless others gain.

    Args:
        gm: the float graph, which is not changed.
        request: the simulation.
        batches: values of the graph's inputs; the ranges are found on three quarters of them and
            the noise is that of the others, if there are that many.
        tried: factors as for `ChannelSpaces.apply`.
    """
    seen = [b for i, b in enumerate(batches) if i % _HELD_OUT != _HELD_OUT - 1]
    judged = [b for i, b in enumerate(batches) if i % _HELD_OUT == _HELD_OUT - 1] or batches
    errors = [_noise(gm, request, seen, judged, factors) for factors in tried]
    best = min(range(len(tried)), key=lambda i: float(errors[i].sum()))
    return tried[best] if is_real_gain(_WORTHWHILE * errors[0], errors[best]) else tried[0]


@torch.no_grad()
def _noise(
    gm: fx.GraphModule,
    request: GridRequest,
    seen: Sequence[list[Any]],
    judged: Sequence[list[Any]],
    factors: Tensor,
) -> Tensor:
    """Of every row of the outputs of the samples to judge by, `[N]`."""
    scaled = copy.deepcopy(gm)
    ChannelSpaces(scaled).apply(factors)
    placed = request.placed(scaled)
    del scaled
    with evaluating(placed), ValueStore() as store:
        calibrate(placed, [tuple(values) for values in seen])
        check = OutputCheck(placed, range(len(judged)), lambda i: judged[i], store)
        return check.errors()
