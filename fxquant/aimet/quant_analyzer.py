"""QuantAnalyzer: `aimet_torch.quant_analyzer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant.aimet.defs import CallbackFunc
from fxquant.aimet.model_preparer import recorded
from fxquant.analysis import quant_analyzer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

__all__ = ["CallbackFunc", "QuantAnalyzer"]


class QuantAnalyzer(quant_analyzer.QuantAnalyzer):
    """`fxquant.QuantAnalyzer`, which takes models that wait for their dummy input.

    Args:
        model: the float model.
        dummy_input: example inputs.
        forward_pass_callback: runs data through the model it is given.
        eval_callback: the same, returns a number, larger is better.
        modules_to_ignore: modules of `model` that stay in floating point.
        options: as for `fxquant.QuantAnalyzer`.
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        forward_pass_callback: Callable[..., Any],
        eval_callback: Callable[..., Any] | None = None,
        modules_to_ignore: Sequence[nn.Module] | None = None,
        **options: Any,
    ) -> None:
        recorded(model, dummy_input)
        super().__init__(
            model, dummy_input, forward_pass_callback, eval_callback, modules_to_ignore, **options
        )
