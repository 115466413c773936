"""A simulation as onnxruntime computes it: a torch module over a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant.onnx.integer.simulation import Example, LoweredSimulation
from fxquant.onnx.session import Level, open_session, packed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import fx

    from fxquant.onnx.integer.kernels.arithmetic import Array
    from fxquant.onnx.ort.feeds import Feeds


class RuntimeSimulation(LoweredSimulation):
    """A simulation computed by onnxruntime, optimizations on, in the kernels of this CPU.

    Args:
        gm: see `LoweredSimulation`.
        example: positional and keyword inputs.
        lowering: options of `LoweredSimulation`.
    """

    def __init__(self, gm: fx.GraphModule, example: Example, **lowering: Any) -> None:
        super().__init__(gm, example, **lowering)
        with packed(self.lowered.model) as source:
            self._session = open_session(source, Level.ALL)

    def outputs(self, feeds: Feeds) -> Mapping[str, Array]:
        """The outputs of the graph by name, in order."""
        return self._session.run(feeds)
