"""Which part of all data a walk has, and what the other parts say of a layer.

A process that has all data is the plain case. Where several processes have a part each, a layer's
statistics are those of all parts, and one process decides what becomes of the layer; the processes
are `fxquant.distributed`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

R = TypeVar("R")


class WholeData:
    """All data are here.

    Attributes:
        decides: whether this process decides what becomes of a layer.
        batches_before: batches of the parts before this one.
        samples_before: their samples.
        samples: those of all parts.
    """

    decides = True
    batches_before = samples_before = samples = 0

    def begin(self, samples: Sequence[int]) -> None:
        """Called once the data are known, with the samples of each batch of this part."""
        self.samples = sum(samples)

    def from_each(self, step: str, own: Mapping[str, Tensor]) -> Iterable[Mapping[str, Tensor]]:
        """Tensors of every part, in the order of the parts.

        Args:
            step: what is asked for, the same in all processes.
            own: those of this part.
        """
        return (own,)

    def unknown(self, found: R | None) -> bool:
        """Whether a layer is to be looked at: nothing is known of it where that is decided."""
        return found is None

    def settled(self, layer: Any, found: R | None) -> R:
        """Give the layer what was decided for it; the report of that.

        Args:
            layer: a layer of `fxquant.ptq.layers.layer`.
            found: the report, where this process decides.
        """
        if found is None:
            msg = "nothing was found for a layer by the process that decides"
            raise RuntimeError(msg)
        return found
