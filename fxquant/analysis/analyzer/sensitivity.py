"""How much each layer's quantizers cost the model's outputs, alone or all but these.

Every value is one evaluation of the model, which depends on nothing but the simulation and the
data: it is kept in a file as soon as it is known, and a run that was killed goes on behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant.mixed_precision.scores import Noise, score_of
from fxquant.nn.modes import Kept, has_quantizers, quantizers_removed
from fxquant.quantization.decibels import decibels

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx

    from fxquant.mixed_precision.progress_file import ProgressFile

LABEL_FREE = "SQNR of the outputs against the float model, in dB"
BY_CALLBACK = "eval_callback"


def layers_with_quantizers(gm: fx.GraphModule) -> list[str]:
    """Paths of modules that hold quantizers, in the order in which the graph calls them."""
    called = dict.fromkeys(str(n.target) for n in gm.graph.nodes if n.op == "call_module")
    return [path for path in called if has_quantizers(gm.get_submodule(path))]


class Sensitivity:
    """Evaluates a simulation with some of its quantizers.

    Args:
        gm: the simulated graph.
        evaluate: the user's function, larger is better; None: decibels at the outputs.
        noise: the noise at the outputs, where `evaluate` is None.
        progress: what was found before.
        tell: called after every evaluation.
    """

    def __init__(
        self, gm: fx.GraphModule, evaluate: Callable[[Any], Any] | None, noise: Noise | None,
        progress: ProgressFile, tell: Callable[[], None],
    ) -> None:  # fmt: skip
        self.gm, self.evaluate, self.noise = gm, evaluate, noise
        self.progress, self.tell = progress, tell

    def float_model(self) -> float | None:
        """Without quantizers; None where that is what the others are compared with."""
        if self.evaluate is None:
            return None
        return self._once("model", "float", lambda *_: False)

    def all_quantized(self) -> float:
        """With all of them."""
        return self._once("model", "all", lambda *_: True)

    def weights(self) -> float:
        """With those of parameters alone."""
        return self._once("model", "weights", lambda _, role, *__: role == "param")

    def activations(self) -> float:
        """With those of activations alone."""
        return self._once("model", "activations", lambda _, role, *__: role != "param")

    def only(self, layer: str) -> float:
        """With those of one layer alone."""
        return self._once("enabled", layer, lambda path, *_: path == layer)

    def all_but(self, layer: str) -> float:
        """With all but those of one layer."""
        return self._once("disabled", layer, lambda path, *_: path != layer)

    def _once(self, stage: str, key: str, kept: Kept) -> float:
        def measure() -> float:
            with quantizers_removed(self.gm, kept):
                if self.noise is not None:
                    return decibels(1.0, self.noise.share())
                return score_of(self.evaluate, self.gm, kept=True)  # type: ignore[arg-type]

        found = float(self.progress.once(stage, key, measure))
        self.tell()
        return found


def noise_of(gm: fx.GraphModule, data: Any, samples: int, threads: int | None) -> Noise:
    """The noise of a simulation against the same model without quantizers.

    Raises:
        CalibrationError: FXQ442 to FXQ445 the data are no batches, FXQ449 outputs are not finite.
    """
    with quantizers_removed(gm, lambda *_: False):
        return Noise(gm, data, samples, threads)
