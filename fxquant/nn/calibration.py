"""Calibration of all quantizers under a module."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fxquant.nn.containers import QuantizerDict
from fxquant.nn.live_norm import live_norm_of
from fxquant.nn.low_rank import adapter_of, adapts
from fxquant.quantization import QuantizerBase
from fxquant.quantization.affine import AffineQuantizer, BiasQuantizeDequantize

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def compute_encodings(model: nn.Module) -> Iterator[None]:
    """Observe activations and set every grid on leaving.

    Ranges of parameters are computed from the parameters themselves, on entering. Inside,
    quantizers of activations return their inputs unchanged, so every layer is calibrated on what
    its float (but weight-quantized) predecessors compute.

    Args:
        model: a quantized module, or any module that holds some.

    Raises:
        CalibrationError: a tensor holds NaN or infinity.
    """
    compute_param_encodings(model)
    params = {
        id(q) for _, q in _param_quantizers(model) if not isinstance(q, BiasQuantizeDequantize)
    }
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, QuantizerBase) and id(module) not in params:
                stack.enter_context(module.compute_encodings())
        yield
    fit_biases(model)


def compute_param_encodings(model: nn.Module) -> None:
    """Set the grids of all parameters from their values, where `allow_overwrite` permits.

    A quantizer that serves several parameters covers all of them.

    Args:
        model: a quantized module, or any module that holds some.

    Raises:
        CalibrationError: a parameter holds NaN or infinity.
    """
    values: dict[int, tuple[QuantizerBase, list[Tensor]]] = {}
    for value, quantizer in _param_quantizers(model):
        if isinstance(quantizer, BiasQuantizeDequantize):
            continue
        values.setdefault(id(quantizer), (quantizer, []))[1].append(value)
    with torch.no_grad():
        for quantizer, tensors in values.values():
            with quantizer.compute_encodings():
                for tensor in tensors:
                    quantizer(tensor)


def _param_quantizers(model: nn.Module) -> Iterator[tuple[Tensor, QuantizerBase]]:
    for module in model.modules():
        quantizers = getattr(module, "param_quantizers", None)
        if isinstance(quantizers, QuantizerDict):
            for name, quantizer in quantizers.active():
                value = weight_of(module, name)
                if value is not None:
                    yield value, quantizer


def weight_of(module: nn.Module, name: str) -> Tensor | None:
    """A parameter as it is quantized.

    It may be a buffer, as in a filter that is not trained, a batch norm may be folded in, and an
    adapter added to the weight.
    """
    live = live_norm_of(module)
    if live is not None:
        return live.folded(module).get(name)
    value = module._parameters.get(name)
    adapter = adapter_of(module) if adapts(module, name) else None
    if adapter is not None and value is not None:
        return adapter.added_to(value)
    return value if value is not None else module._buffers.get(name)


def fit_biases(model: nn.Module) -> None:
    """Widen the ranges of weights whose step is so small that an int32 bias would saturate."""
    for bias, quantizer in _param_quantizers(model):
        if not isinstance(quantizer, BiasQuantizeDequantize):
            continue
        weight = quantizer.weight_quantizer
        step = quantizer.needed_step(bias)
        if step is not None and isinstance(weight, AffineQuantizer) and weight.overwritable:
            weight.widen(step)


def follow_parameters(module: nn.Module) -> None:
    """Lay the ranges of a module's own parameters around these, where training has begun to.

    Parameters that are sharded over ranks have their ranges laid when the layer runs.
    """
    quantizers = module._modules.get("param_quantizers")
    if not isinstance(quantizers, QuantizerDict) or _is_sharded(module):
        return
    for name, quantizer in quantizers.active():
        value = weight_of(module, name)
        if value is not None:
            quantizer.follow(value, begin=False)


def _is_sharded(module: nn.Module) -> bool:
    """Whether a parameter is a `DTensor`, of which this process has a part."""
    return any(hasattr(p, "full_tensor") for p in module.parameters())
