"""The encodings file: version 1.0.0 of the JSON that AIMET introduced.

Names are those of the ONNX tensors, which for weights are the keys of the state_dict, so the file
serves beside the quantized model and beside the float weights alike.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import fx

from fxquant import ops
from fxquant._version import __version__
from fxquant.nn import QuantizationMixin
from fxquant.onnx.lowered import Lowered, LoweredTensor

VERSION = "1.0.0"


def encodings_of(gm: fx.GraphModule, lowered: Lowered, *, scheme: str = "") -> dict[str, Any]:
    """The content of the encodings file.

    Args:
        gm: the graph that was lowered.
        lowered: its lowering.
        scheme: name of the quantization scheme.
    """
    activations = [t for t in lowered.tensors if t.kind == "activation"]
    weights = [t for t in lowered.tensors if t.kind != "activation"]
    return {
        "version": VERSION,
        "producer": {"package": "fxquant", "version": __version__},
        "activation_encodings": _entries(activations),
        "param_encodings": _entries(weights),
        "excluded_layers": _excluded(gm),
        "quantizer_args": _arguments(activations, weights, scheme),
    }


def write_encodings(
    gm: fx.GraphModule, lowered: Lowered, path: str | Path, *, scheme: str = ""
) -> dict[str, Any]:
    """Write the encodings file; equal graphs give equal bytes.

    Args:
        gm: the graph that was lowered.
        lowered: its lowering.
        path: the file.
        scheme: name of the quantization scheme.

    Returns:
        What was written.
    """
    encodings = encodings_of(gm, lowered, scheme=scheme)
    Path(path).write_text(as_text(encodings), encoding="utf-8")
    return encodings


def as_text(encodings: dict[str, Any]) -> str:
    """The file's text: a line for each tensor, so that versions can be compared."""
    lines = []
    for key, value in encodings.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            entries = ",\n".join(f"  {json.dumps(entry)}" for entry in value)
            lines.append(f" {json.dumps(key)}: [\n{entries}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def digest(encodings: dict[str, Any]) -> str:
    """SHA-256 of the file's text."""
    return hashlib.sha256(as_text(encodings).encode()).hexdigest()


def _entries(tensors: Iterable[LoweredTensor]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        entry = _entry(tensor)
        found.setdefault(str(entry["name"]), entry)
    return list(found.values())


def _entry(tensor: LoweredTensor) -> dict[str, Any]:
    kind = "PER_TENSOR" if tensor.axis is None else "PER_BLOCK" if tensor.block else "PER_CHANNEL"
    signed = not tensor.dtype.name.startswith("U")
    # offsets count from the smallest integer of an unsigned grid
    shift = 2 ** (tensor.bits - 1) if signed else 0
    zeros = tensor.zero_point.astype("int64").reshape(-1)
    entry: dict[str, Any] = {
        "name": tensor.float_name or tensor.dequantized_name or tensor.quantized_name,
        "enc_type": kind,
        "dtype": "INT",
        "bw": tensor.bits,
        "is_sym": tensor.symmetric,
        "scale": [float(s) for s in tensor.scale.reshape(-1)],
        "offset": [-int(z) - shift for z in zeros],
    }
    if tensor.block:
        entry["block_size"] = tensor.block
    return entry


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


def _arguments(
    activations: list[LoweredTensor], weights: list[LoweredTensor], scheme: str
) -> dict[str, Any]:
    weights = [t for t in weights if t.kind == "weight"]
    return {
        "quant_scheme": scheme,
        "activation_bitwidth": _usual(t.bits for t in activations),
        "param_bitwidth": _usual(t.bits for t in weights),
        "dtype": "int",
        "is_symmetric": bool(weights) and all(t.symmetric for t in weights),
        "per_channel_quantization": any(t.axis is not None for t in weights),
    }


def _usual(bits: Iterable[int]) -> int | None:
    counted = Counter(bits)
    return min(counted, key=lambda b: (-counted[b], b)) if counted else None
