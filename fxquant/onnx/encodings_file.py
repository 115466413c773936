"""The encodings file that lies beside a quantized ONNX model, and the names that it uses.

Names are those of the ONNX tensors, which for weights are the keys of the state_dict, so the file
serves beside the quantized model and beside the float weights alike. Grids of weights are told as
the state_dict has them, also where ONNX stores another layout.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant import ops
from fxquant.encodings.collect import entry_of, places, quantizer_arguments
from fxquant.encodings.entry import Entry
from fxquant.encodings.file import EncodingsFile, as_text, write
from fxquant.encodings.slots import float_results
from fxquant.io.writing import write_text
from fxquant.nn import QuantizationMixin
from fxquant.onnx.lowering.lower import lower
from fxquant.quantization.affine import BiasQuantizeDequantize, QuantizeDequantize
from fxquant.quantization.affine.affine_quantizer import AffineQuantizer

if TYPE_CHECKING:
    from pathlib import Path

    from fxquant.onnx.lowering.result import Lowered, LoweredTensor

VERSION = "1.0.0"

__all__ = ["VERSION", "as_text", "encodings_of", "tensor_names", "write_encodings"]


def encodings_of(
    gm: fx.GraphModule, lowered: Lowered, *, scheme: str = "", version: str = VERSION
) -> dict[str, Any]:
    """The content of the encodings file.

    Args:
        gm: the graph that was lowered.
        lowered: its lowering.
        scheme: name of the quantization scheme.
        version: version of the file: 0.6.1, 1.0.0, 2.0.0 or 2.1.0.

    Raises:
        CheckpointError: FXQ631, there is no such version.
    """
    activations = _entries(gm, (t for t in lowered.tensors if t.kind == "activation"))
    activations += [entry_of(name, q, None) for name, q in dict(lowered.narrow).items()]
    params = _entries(gm, (t for t in lowered.tensors if t.kind != "activation"))
    params += _float_params(gm)
    arguments = quantizer_arguments(activations, params, scheme)
    excluded = tuple(_excluded(gm))
    file = EncodingsFile(
        version, tuple(activations), tuple(params), excluded=excluded, arguments=arguments
    )
    return write(file)


def write_encodings(
    gm: fx.GraphModule,
    lowered: Lowered,
    path: str | Path,
    *,
    scheme: str = "",
    version: str = VERSION,
) -> dict[str, Any]:
    """Write the encodings file; equal graphs give equal bytes.

    Args:
        gm: the graph that was lowered.
        lowered: its lowering.
        path: the file.
        scheme: name of the quantization scheme.
        version: version of the file.

    Returns:
        What was written.
    """
    encodings = encodings_of(gm, lowered, scheme=scheme, version=version)
    write_text(path, as_text(encodings))
    return encodings


def tensor_names(gm: fx.GraphModule, example: Any) -> Mapping[str, tuple[str, ...]]:
    """ONNX names of activations, each with the places whose quantizer gives its grid.

    The names are those of a lowering, so a copy is lowered, with a range wherever there is none.

    Args:
        gm: the model of a simulation; it is not changed.
        example: positional and keyword inputs.
    """
    copied = copy.deepcopy(gm)
    homes = _with_ranges(copied)
    for place in list(places(copied)):
        if place.is_param:
            place.home[place.key] = None
    found: dict[str, tuple[str, ...]] = {}
    for tensor in lower(copied, example).tensors:
        for name in (tensor.float_name, tensor.quantized_name, tensor.dequantized_name):
            if name and id(tensor.quantizer) in homes:
                found.setdefault(name, tuple(homes[id(tensor.quantizer)]))
    return found


def _with_ranges(copied: fx.GraphModule) -> dict[int, list[str]]:
    """Give every activation a quantizer that can be lowered; quantizer -> names of its places."""
    homes: dict[int, list[str]] = {}
    stand_ins: dict[int, QuantizeDequantize] = {}
    results = float_results(copied)  # a file may have grids for them, see `load`
    for place in list(places(copied)):
        quantizer = place.quantizer
        if place.name in results:
            quantizer = place.home[place.key] = QuantizeDequantize(())
        if quantizer is None or place.is_param:
            continue
        if not isinstance(quantizer, AffineQuantizer) or quantizer.bitwidth > 16:
            quantizer = stand_ins.setdefault(id(quantizer), QuantizeDequantize(()))
            place.home[place.key] = quantizer
        if not quantizer.is_initialized():
            quantizer.set_range(-1.0, 1.0)
        homes.setdefault(id(quantizer), []).append(place.name)
    return homes


def _entries(gm: fx.GraphModule, tensors: Iterable[LoweredTensor]) -> list[Entry]:
    found: dict[str, Entry] = {}
    shapes = {name: tuple(value.shape) for name, value in gm.state_dict().items()}
    for tensor in tensors:
        name = tensor.float_name or tensor.dequantized_name or tensor.quantized_name
        if name not in found and tensor.quantizer is not None:
            shape = shapes.get(name) if tensor.kind != "activation" else None
            found[name] = entry_of(name, tensor.quantizer, shape)
    return list(found.values())


def _float_params(gm: fx.GraphModule) -> list[Entry]:
    """Parameters in a narrow floating-point format: casts in ONNX, not quantized tensors."""
    return [
        entry_of(place.name, place.quantizer, place.shape)
        for place in places(gm)
        if place.is_param
        and place.quantizer is not None
        and not isinstance(place.quantizer, AffineQuantizer | BiasQuantizeDequantize)
        and place.quantizer.is_initialized()
    ]


def _excluded(gm: fx.GraphModule) -> list[str]:
    """Modules whose weights stay floating point."""
    found = []
    for node in gm.graph.nodes:
        if node.op != "call_module":
            continue
        module = gm.get_submodule(str(node.target))
        row = ops.row_for_module(module)
        if row is None or row.weight_axis is None or getattr(module, "weight", None) is None:
            continue
        known = module.param_quantizers.active() if isinstance(module, QuantizationMixin) else ()
        if "weight" not in dict(known):
            found.append(str(node.target))
    return found
