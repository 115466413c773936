"""From the quantizers of a simulated model to entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fxquant.encodings.entry import FLOATS, Entry
from fxquant.encodings.file import EncodingsFile
from fxquant.encodings.slots import names_at_consumers
from fxquant.nn import QuantizationMixin
from fxquant.quantization import AffineEncoding, FloatEncoding
from fxquant.quantization.affine import BiasQuantizeDequantize
from fxquant.quantization.encodings import GroupedBlockEncoding

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxquant.nn.containers import QuantizerDict, QuantizerList
    from fxquant.quantization import QuantizerBase

_FLOAT_NAMES = {dtype: name for name, dtype in FLOATS.items()}


@dataclass(frozen=True)
class Place:
    """Where a quantizer is held.

    Attributes:
        name: `module.input.0`, `module.output.0` or `module.weight`.
        home: the list or dict that holds it.
        key: its place there.
        quantizer: the quantizer; None means float.
        shape: shape of the parameter it quantizes; None for activations.
    """

    name: str
    home: QuantizerList | QuantizerDict
    key: Any
    quantizer: QuantizerBase | None
    shape: tuple[int, ...] | None = None

    @property
    def is_param(self) -> bool:
        """Whether it quantizes a parameter."""
        return self.shape is not None


def places(model: nn.Module) -> Iterator[Place]:
    """Every place for a quantizer in a model, taken or not, in the order of its modules."""
    for path, module in model.named_modules():
        if not isinstance(module, QuantizationMixin):
            continue
        sides = (("input", module.input_quantizers), ("output", module.output_quantizers))
        for side, quantizers in sides:
            for index, quantizer in enumerate(quantizers._modules.values()):
                yield Place(f"{path}.{side}.{index}", quantizers, index, quantizer)  # type: ignore[arg-type]
        for name, quantizer in module.param_quantizers.items():
            parameter: Tensor | None = getattr(module, name, None)
            shape = () if parameter is None else tuple(parameter.shape)
            label = f"{path}.{name}" if path else name
            yield Place(label, module.param_quantizers, name, quantizer, shape)  # type: ignore[arg-type]


def module_encodings(model: nn.Module, *, scheme: str = "") -> EncodingsFile:
    """What version 0.6.1 keyed by module says of a model; quantizers without a range are left out.

    Biases whose grid follows from those of input and weight are left out as well. What a stub of
    the placement quantizes is told at the modules that read it, where other tools look for it.
    """
    consumers = names_at_consumers(model)
    activations: list[Entry] = []
    params: list[Entry] = []
    for place in places(model):
        if place.quantizer is None or isinstance(place.quantizer, BiasQuantizeDequantize):
            continue
        if place.quantizer.is_initialized():
            entry = entry_of(place.name, place.quantizer, place.shape)
            names = consumers.get(place.name, (place.name,))
            (params if place.is_param else activations).extend(map(entry.renamed, names))
    return EncodingsFile(
        "0.6.1", tuple(activations), tuple(params), by_module=True,
        arguments=quantizer_arguments(activations, params, scheme),
    )  # fmt: skip


def entry_of(name: str, quantizer: QuantizerBase, shape: tuple[int, ...] | None) -> Entry:
    """The entry of a quantizer that has a range.

    Args:
        name: what the tensor is called.
        quantizer: its quantizer.
        shape: the tensor's shape, where it is known; tells the axis of channels and blocks.
    """
    encoding = quantizer.get_encodings()
    if isinstance(encoding, FloatEncoding):
        scale = None if encoding.scale is None else _array(encoding.scale)
        axis = None if scale is None else axis_of(scale.shape, None, shape)[0]
        label = _FLOAT_NAMES[encoding.dtype]
        return Entry(name, encoding.bitwidth, scale, float_type=label, axis=axis)
    if not isinstance(encoding, AffineEncoding):
        msg = f"{name} has no range"
        raise TypeError(msg)  # the callers ask is_initialized() first
    return _affine_entry(name, encoding, shape)


def _affine_entry(name: str, encoding: AffineEncoding, shape: tuple[int, ...] | None) -> Entry:
    bits = encoding.bitwidth
    low = -(2 ** (bits - 1)) if encoding.signed else 0
    limits = (encoding.qmin, encoding.qmax)
    scale = _array(encoding.scale)
    steps = _array(encoding.zero_point).astype(np.int64) - encoding.qmin
    axis, block = axis_of(encoding.shape, encoding.block_size, shape)
    if axis is None and scale.size == 1:
        scale, steps = scale.reshape(()), steps.reshape(())
    factors, wide = None, None
    if isinstance(encoding, GroupedBlockEncoding) and encoding.per_block_int_scale is not None:
        factors = _array(encoding.per_block_int_scale).astype(np.int64)
        scale, wide = _groups(encoding), encoding.decompressed_bw
    return Entry(
        name, bits, scale, steps, signed=encoding.signed, symmetric=encoding.symmetry,
        limits=None if limits == (low, low + 2**bits - 1) else limits,
        axis=axis, block=block, factors=factors, wide_bits=wide,
    )  # fmt: skip


def _array(x: Tensor) -> Any:
    return x.detach().cpu().numpy()


def axis_of(
    counts: tuple[int, ...], sizes: tuple[int, ...] | None, shape: tuple[int, ...] | None
) -> tuple[int | None, int | None]:
    """Axis along which ranges change, or that is cut into blocks, and the size of the blocks.

    Args:
        counts: shape of the ranges, laid against the tensor from the right.
        sizes: elements per block along each axis, -1 where they follow from `shape`; or None.
        shape: the tensor's shape; without it axes are counted from the end.
    """
    shift = (len(shape) if shape is not None else 0) - len(counts)
    if sizes is None:
        several = [i for i, n in enumerate(counts) if n > 1]
        return (several[0] + shift, None) if len(several) == 1 else (None, None)
    if shape is not None and shift >= 0:
        sizes = tuple(n // max(1, c) for n, c in zip(shape[shift:], counts, strict=True))
    pairs = list(zip(counts, sizes, strict=True))
    several = [i for i, (count, size) in enumerate(pairs) if count > 1 and size > 1]
    axis = several[0] if several else max(range(len(sizes)), key=lambda i: pairs[i][1])
    return axis + shift, sizes[axis]


def _groups(encoding: GroupedBlockEncoding) -> Any:
    """The scales of the groups, each once."""
    group = encoding.per_channel_scale
    found = _array(encoding.scale if group is None else group)
    for axis, size in enumerate(encoding.block_grouping):
        found = found.take(
            range(0, found.shape[axis], size if size > 0 else found.shape[axis]), axis
        )
    return found


def quantizer_arguments(
    activations: list[Entry], params: list[Entry], scheme: str
) -> Mapping[str, Any]:
    """The usual settings of the quantizers, as the files have them."""
    params = [e for e in params if e.bits < 32]
    return {
        "quant_scheme": scheme,
        "activation_bitwidth": _usual(activations),
        "param_bitwidth": _usual(params),
        "dtype": "float" if activations and all(e.float_type for e in activations) else "int",
        "is_symmetric": bool(params) and all(e.symmetric for e in params),
        "per_channel_quantization": any(e.kind != "PER_TENSOR" for e in params),
    }


def _usual(entries: list[Entry]) -> int | None:
    bits = [e.bits for e in entries]
    return min(bits, key=lambda b: (-bits.count(b), b)) if bits else None
