"""The statistics of a simulation that observes, as named tensors, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant.errors import TrainingError
from fxquant.quantization import QuantizerBase
from fxquant.quantization.analyzers.min_max import Mergeable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

_BETWEEN = ":"  # of a quantizer's path and a name of its statistics; in no path of a module


def require_mergeable(model: nn.Module) -> None:
    """Refuse a simulation with statistics that depend on the order of the data.

    Raises:
        TrainingError: FXQ813.
    """
    for path, quantizer in _named(model):
        kind = quantizer.new_statistics()
        if kind is not None and not isinstance(kind, Mergeable):
            analyzer = getattr(quantizer, "encoding_analyzer", None)
            what = f"statistics of {analyzer} depend on the order of the data and cannot be merged"
            fix = "use another scheme, such as min_max, or calibrate in one process"
            raise TrainingError("FXQ813", what, at=quantizer.where or path, fix=fix)


def collected(model: nn.Module) -> dict[str, Tensor]:
    """All that the quantizers have seen, on the CPU, by `quantizer:name`."""
    return {
        f"{path}{_BETWEEN}{name}": tensor.cpu().contiguous()
        for path, quantizer in _named(model)
        if isinstance(quantizer.statistics, Mergeable)
        for name, tensor in quantizer.statistics.state().items()
    }


class Merging:
    """Statistics of parts of the data, put together.

    Args:
        model: a simulated model, for the kinds of its statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        self._quantizers = dict(_named(model))
        self._merged = {path: _fresh(q) for path, q in self._quantizers.items()}

    def take(self, part: Mapping[str, Tensor]) -> None:
        """Take in what `collected` gave of one part.

        Raises:
            ValueError: it is of other quantizers, or damaged.
        """
        states: dict[str, dict[str, Tensor]] = {}
        for key, tensor in part.items():
            path, _, name = key.rpartition(_BETWEEN)
            states.setdefault(path, {})[name] = tensor
        unknown = states.keys() - {p for p, found in self._merged.items() if found is not None}
        if unknown:
            msg = f"there is no quantizer {min(unknown)}"
            raise ValueError(msg)
        for path, state in states.items():
            found, merged = _fresh(self._quantizers[path]), self._merged[path]
            if found is not None and merged is not None:
                found.load(state)
                merged.merge(found)

    def give(self) -> None:
        """Let the quantizers, which are observing, have seen all of it and nothing else."""
        for path, quantizer in self._quantizers.items():
            merged = self._merged[path]
            if merged is not None and quantizer.observing:
                quantizer.statistics = merged


def _fresh(quantizer: QuantizerBase) -> Mergeable | None:
    found = quantizer.new_statistics()
    return found if isinstance(found, Mergeable) else None


def _named(model: nn.Module) -> Iterator[tuple[str, QuantizerBase]]:
    for path, module in model.named_modules():
        if isinstance(module, QuantizerBase):
            yield path, module
