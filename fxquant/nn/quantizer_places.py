"""Every place of a model where a quantizer stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fxquant.nn.mixin import QuantizationMixin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from fxquant.quantization import QuantizerBase

PlaceRole = Literal["input", "output", "param"]


@dataclass(frozen=True)
class QuantizerPlace:
    """One place; a quantizer that several tensors share stands at several.

    Attributes:
        path: of the quantized module in the model.
        module: the module.
        role: what is quantized.
        home: its container of quantizers for that.
        key: position of the input or output, or name of the parameter.
        quantizer: what stands there.
    """

    path: str
    module: QuantizationMixin
    role: PlaceRole
    home: Any
    key: Any
    quantizer: QuantizerBase

    def put(self, quantizer: QuantizerBase | None) -> None:
        """Put another quantizer there; None: none."""
        self.home[self.key] = quantizer


def quantizer_places(model: nn.Module) -> Iterator[QuantizerPlace]:
    """Places in the order of the modules: inputs, outputs, parameters. They may be changed.

    Example:
        >>> from torch import nn
        >>> module = QuantizationMixin.from_module(nn.Linear(2, 2))
        >>> [(place.role, place.key) for place in quantizer_places(module)]
        []
    """
    for path, module in list(model.named_modules()):
        if not isinstance(module, QuantizationMixin):
            continue
        homes: tuple[tuple[PlaceRole, Any], ...] = (
            ("input", module.input_quantizers),
            ("output", module.output_quantizers),
            ("param", module.param_quantizers),
        )
        for role, home in homes:
            for key, quantizer in list(home.active()):
                yield QuantizerPlace(path, module, role, home, key, quantizer)
