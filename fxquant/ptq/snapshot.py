"""The state of a simulation, taken and put back: weights, ranges, grids, and which stand where.

Techniques try something and go back where it does not help. A checkpoint is a file and needs a
simulation that is built alike; a snapshot lives in memory, and also undoes what replaces quantizers
or changes their bits.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.errors import QuantizationError
from fxquant.nn import QuantizationMixin
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fxquant.sim import QuantizationSimModel

_HOMES = ("input_quantizers", "output_quantizers", "param_quantizers")
# what a quantizer keeps beside its parameters; the rest follows from these
_TRAITS = (
    "_grid",
    "_layout",
    "_single",
    "_held",
    "_overwritable",
    "_frozen",
    "_seen",
    "encoding_analyzer",
    "_rounding",
)


@dataclass(frozen=True)
class Snapshot:
    """What `snapshot` took.

    Attributes:
        tensors: parameter or buffer, and a copy of its values.
        places: registry of a quantized module, and the quantizers or parameters that stood in it.
        traits: quantizer, and what it keeps beside its range.
        originals: quantized module, and the float values it keeps of changed parameters.
    """

    model: nn.Module
    tensors: tuple[tuple[Tensor, Tensor], ...]
    places: tuple[tuple[dict[str, Any], dict[str, Any]], ...]
    traits: tuple[tuple[QuantizerBase, dict[str, Any]], ...]
    originals: tuple[tuple[QuantizationMixin, dict[str, Any]], ...]


def snapshot(sim: QuantizationSimModel) -> Snapshot:
    """Take the state of a simulation.

    Example:
        >>> from fxquant import QuantizationSimModel
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3))
        >>> before = snapshot(sim)
        >>> with torch.no_grad():
        ...     weight = next(sim.model.parameters()).zero_()
        >>> restore(sim, before)
        >>> bool(weight.any())
        True
    """
    model = sim.model
    tensors = [*model.parameters(), *model.buffers()]
    modules = [m for m in model.modules() if isinstance(m, QuantizationMixin)]
    places = [getattr(module, home)._modules for module in modules for home in _HOMES]
    # a technique may give a layer a bias that had none
    places += [module._parameters for module in modules]
    quantizers = [q for q in model.modules() if isinstance(q, QuantizerBase)]
    return Snapshot(
        model,
        tuple((t, t.detach().clone()) for t in tensors),
        tuple((place, dict(place)) for place in places),
        tuple((q, {n: vars(q)[n] for n in _TRAITS if n in vars(q)}) for q in quantizers),
        tuple((m, dict(vars(m).get(m.FLOAT_VALUES, {}))) for m in modules),
    )


def restore(sim: QuantizationSimModel, taken: Snapshot) -> None:
    """Put the state of a simulation back; a snapshot can be put back more than once.

    Raises:
        QuantizationError: FXQ448, the snapshot is of another simulation.
    """
    if taken.model is not sim.model:
        what = "the snapshot is of another simulation"
        raise QuantizationError("FXQ448", what, fix="take one of this simulation")
    for place, stood in taken.places:
        place.clear()
        place.update(stood)
    for quantizer, traits in taken.traits:
        vars(quantizer).update(traits)
        quantizer._forget()
    for module, kept in taken.originals:
        vars(module)[module.FLOAT_VALUES] = dict(kept)
    with torch.no_grad():
        for tensor, values in taken.tensors:
            tensor.copy_(values)


@contextmanager
def undone_on_error(sim: QuantizationSimModel) -> Iterator[Snapshot]:
    """Put a simulation back as it was if the block fails or is interrupted; yields what it was."""
    before = snapshot(sim)
    try:
        yield before
    except BaseException:
        restore(sim, before)
        raise
