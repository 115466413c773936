"""How much memory it takes to decide a layer, beside the values that a walk holds."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from fxquant.ptq.moments import PIECE
from fxquant.ptq.sampling import GATHERED
from fxquant.ptq.solving.solver import factor_type, tried_steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from fxquant.ptq.layers.layer import Layer

log = logging.getLogger("fxquant")
# for each pair of inputs, and for each weight: while the target is found, moments in float64, the
# damped ones and their inverse in its own place, and some float64 weights; then the damped ones,
# their inverse and its factor, and what the descent keeps of every integer
_TARGET, _DESCENT = (16, 48), (12, 72)
# of both together where it is factored in float64
_SMALL = (44, 72)
# for each number of the rows that are judged by: outputs that are compared, some in float64
_OUTPUT = 32


def working_bytes(layer: Layer, rows: int, kept: float = 1.0) -> int:
    """About what deciding a layer takes, without the values of the batch that is looked at.

    Rows are gathered first and their moments are formed; then the rows are gone, but for those that
    are kept, and it is solved.

    Args:
        layer: the layer.
        rows: positions of its output that are looked at, at most.
        kept: share of the rows that are kept.
    """
    groups, outputs, inputs = layer.shape
    row, weights, pairs = groups * (inputs + outputs), groups * inputs * outputs, groups * inputs**2
    held = kept * rows
    # columns, their places in the input, and those that are live
    at_once = 12 * min(GATHERED, rows * groups * inputs)
    gathering = 4 * min(rows, PIECE) * row + at_once + 8 * pairs + 12 * weights
    tried = tried_steps(inputs)
    steps = (_SMALL,) if factor_type(inputs) == torch.float64 else (_TARGET, _DESCENT)
    solving = max(a * pairs + b * tried * weights for a, b in steps)
    return int(4 * held * row + max(gathering, solving + held * groups * outputs * _OUTPUT))


def copied_bytes(model: nn.Module) -> int:
    """Copies of parameters: to go back to, and of float values of those that are changed."""
    return 2 * sum(p.nbytes for p in model.parameters())


def warn_if_too_small(limit: int | None, needs: Mapping[str, int], copies: int) -> None:
    """Say before a long run that a limit of memory cannot be kept.

    Args:
        limit: bytes; None: there is none.
        needs: what each layer takes, by path.
        copies: what copies of parameters take all the time.
    """
    path = max(needs, key=lambda p: needs[p], default=None)
    if limit is not None and path is not None and copies + needs[path] > limit:
        log.warning(
            "max_memory is %.0f MB, but %s alone takes about %.0f MB, %.0f MB of it copies of the "
            "model's parameters: so much will be used",
            limit / 1e6, path, (copies + needs[path]) / 1e6, copies / 1e6,
        )  # fmt: skip
