"""Kernels of one's own in place of the simulated arithmetic of a quantized module.

A kernel gets what an integer kernel of a chip gets: integers with their encodings, and the encoding
in which the result is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

from fxquant.errors import QuantizationError
from fxquant.quantization.tensor import DequantizedTensor, QuantizedTensor, attach

if TYPE_CHECKING:
    from fxquant.quantization import QuantizerBase

Kernel: TypeAlias = Callable[..., Tensor]
"""`kernel(module, *args, params, output_encodings, **kwargs)`; see `set_kernel`."""


def observing(module: nn.Module) -> bool:
    """Whether a quantizer of the module is being calibrated; kernels wait for its range."""
    return any(getattr(m, "_observing", False) for m in module.modules())


def run(kernel: Kernel, module: Any, args: Any, kwargs: Any, params: Mapping[str, Tensor]) -> Any:
    """Call a kernel with integers and turn its result into real values.

    Args:
        kernel: see `set_kernel`.
        module: the quantized module.
        args: positional inputs, quantized by the input quantizers.
        kwargs: inputs by name.
        params: quantized parameters by name.

    Raises:
        QuantizationError: FXQ423, the result is no tensor.
    """
    output: QuantizerBase | None = module.output_quantizers[0]
    given: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    for name, value in params.items():
        quantizer: Any = module.param_quantizers[name]
        given[name] = attach(value, quantizer.get_encodings(), DequantizedTensor).quantize()
    encodings = output.get_encodings() if output is not None else None
    result = kernel(
        module, *map(_integers, args), params=given, output_encodings=encodings,
        **{name: _integers(value) for name, value in kwargs.items()},
    )  # fmt: skip
    if not isinstance(result, Tensor):
        what = f"the kernel of {type(module).__name__} returned a {type(result).__name__}"
        raise QuantizationError("FXQ423", what, fix="return one tensor")
    if isinstance(result, QuantizedTensor):
        return result.dequantize()
    return output(result) if output is not None else result


def _integers(value: Any) -> Any:
    """Integers where a tensor lies on a grid; other values as they are."""
    if isinstance(value, DequantizedTensor) and value.encoding is not None:
        return value.quantize()
    return value
