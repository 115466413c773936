"""The phase of training: what is switched off, frozen or in evaluation, which no tensor says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant.nn.live_norm import LiveNorm
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from torch import nn

_EVALUATING, _UNTRAINED, _FROZEN_NORMS = "evaluating", "untrained", "frozen_norms"
_QUANTIZERS = ("_enabled", "_overwritable", "_frozen", "_held")


def phase_of(model: nn.Module) -> dict[str, Any]:
    """The phase as names of what deviates from a simulation that was just made, and in training."""
    modules = dict(model.named_modules())
    held = {}
    for name, module in modules.items():
        if isinstance(module, QuantizerBase):
            flags = {f: getattr(module, f) for f in _QUANTIZERS if hasattr(module, f)}
            held[name] = {f: sorted(v) if isinstance(v, frozenset) else v for f, v in flags.items()}
    return {
        _EVALUATING: [name for name, m in modules.items() if not m.training],
        _UNTRAINED: [name for name, p in model.named_parameters() if not p.requires_grad],
        _FROZEN_NORMS: [n for n, m in modules.items() if isinstance(m, LiveNorm) and m.frozen],
        "quantizers": held,
    }


def set_phase(model: nn.Module, phase: dict[str, Any]) -> None:
    """Bring a model of the same structure into a phase.

    Args:
        model: a simulated model.
        phase: what `phase_of` gave.
    """
    evaluating, untrained, frozen = (
        set(phase[key]) for key in (_EVALUATING, _UNTRAINED, _FROZEN_NORMS)
    )
    for name, module in model.named_modules():
        module.training = name not in evaluating
        if isinstance(module, LiveNorm):
            module.frozen = name in frozen
        if isinstance(module, QuantizerBase):
            for flag, value in phase["quantizers"].get(name, {}).items():
                if flag in _QUANTIZERS:
                    setattr(module, flag, frozenset(value) if isinstance(value, list) else value)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in untrained)
