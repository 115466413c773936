"""`quant_info.json`: the encodings of a calibration, by module path.

An entry is `[bits, position]` where steps are powers of two, else `[bits, scale, zero_point,
float_max]`, with lists in place of numbers where there is one step a channel. `param`, `output` and
`input` map names to one entry for each tensor; None stands for a tensor that is not quantized.

What the entries cannot say exactly (the ends of a range, from which the step is computed again) is
kept beside them under `fxquant`, so that another process computes the same bits.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxquant._version import __version__
from fxquant.errors import CheckpointError, nearest
from fxquant.graph.printer import dump
from fxquant.io.reading import read_json, reason
from fxquant.io.writing import write_text
from fxquant.nn import QuantizationMixin
from fxquant.quantization.affine import AffineQuantizer, BiasQuantizeDequantize
from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize, position_of
from fxquant.quantization.float import FloatQuantizeDequantize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fxquant.quantization import QuantizerBase

NAME = "quant_info.json"
_SECTIONS = ("param", "output", "input")
_CALIBRATE = "run quant_mode='calib', quant_model on data and export_quant_config() first"
Slot = tuple[str, str, int]  # section, name, number of the tensor


def graph_digest(gm: fx.GraphModule) -> str:
    """Digest of a graph's text: equal for equal networks."""
    return hashlib.md5(dump(gm).encode(), usedforsecurity=False).hexdigest()


def slots(gm: nn.Module) -> Iterator[tuple[Slot, QuantizerBase]]:
    """Every quantizer by section, name and number; one that is shared comes for each holder."""
    for path, module in gm.named_modules():
        if not isinstance(module, QuantizationMixin):
            continue
        for name, quantizer in module.param_quantizers.active():
            yield ("param", f"{path}.{name}", 0), quantizer
        for i, quantizer in module.output_quantizers.active():
            yield ("output", path, i), quantizer
        for i, quantizer in module.input_quantizers.active():
            yield ("input", path, i), quantizer


def write_info(
    gm: fx.GraphModule, path: Path, extra: dict[str, Any], *, finetuned: bool = False
) -> None:
    """Write the encodings of a calibrated graph.

    Args:
        gm: the simulated model.
        path: the file.
        extra: what else a later process has to know.
        finetuned: whether parameters beside it take the place of the network's.
    """
    info: dict[str, Any] = {section: {} for section in _SECTIONS}
    types: dict[str, dict[str, list[str]]] = {section: {} for section in _SECTIONS}
    ranges: dict[str, Any] = {}
    for (section, name, index), quantizer in slots(gm):
        entries = info[section].setdefault(name, [])
        entries += [None] * (index + 1 - len(entries))
        entries[index] = _entry(quantizer)
        if isinstance(quantizer, FloatQuantizeDequantize):
            types[section][name] = [str(quantizer.dtype).removeprefix("torch.")]
        elif isinstance(quantizer, AffineQuantizer):
            ends = [_numbers(end) for end in (quantizer.min, quantizer.max)]
            ranges[f"{section}:{name}:{index}"] = ends
    info |= {"fast_finetuned": finetuned, "bias_corrected": False}
    info |= {"version": f"fxquant {__version__}", "graph_md5": graph_digest(gm)}
    if any(types.values()):
        info["dtype"] = types
    info["fxquant"] = {**extra, "ranges": ranges}
    write_text(path, json.dumps(info, indent=1), error=CheckpointError)


def _entry(quantizer: QuantizerBase) -> list[Any]:
    encoding: Any = quantizer.get_encodings()
    bits = int(encoding.bitwidth)
    if isinstance(quantizer, FloatQuantizeDequantize):
        return [bits, None]
    if isinstance(quantizer, PowerOfTwoQuantizeDequantize):
        steps = encoding.scale.reshape(-1).tolist()
        found = [position_of(step) for step in steps]
        return [bits, found[0] if quantizer.shape == () else found]
    return [bits, *(_numbers(x) for x in (encoding.scale, encoding.zero_point, encoding.max))]


def _numbers(x: torch.Tensor) -> Any:
    flat = x.detach().reshape(-1).tolist()
    return flat[0] if x.dim() == 0 else flat


# --- reading -------------------------------------------------------------------------------------


def read_info(folder: Path) -> dict[str, Any]:
    """The content of a folder's file.

    Raises:
        CheckpointError: FXQ620 there is none, FXQ621 it is no such file.
    """
    path = folder / NAME
    try:
        info = read_json(path)
    except OSError as error:
        what = f"there is no result of a calibration at {path}"
        raise CheckpointError("FXQ620", what, fix=_CALIBRATE) from error
    except ValueError as error:
        raise CheckpointError(
            "FXQ621", f"{path} is damaged: {reason(error)}", fix=_CALIBRATE
        ) from error
    sections = [info.get(s) for s in _SECTIONS] if isinstance(info, dict) else [None]
    if not all(isinstance(s, dict) for s in sections):
        what = f"{path} lacks one of the keys {', '.join(_SECTIONS)}"
        raise CheckpointError("FXQ621", what, fix=_CALIBRATE)
    wrong = [name for s in _SECTIONS for name, v in info[s].items() if not isinstance(v, list)]
    wrong += [] if _is_ours(info.get("fxquant", {})) else ["fxquant"]
    if wrong:
        what = f"{path} is damaged: {wrong[0]!r} is not what is written there"
        raise CheckpointError("FXQ621", what, fix=_CALIBRATE)
    return info  # type: ignore[no-any-return]


def _is_ours(own: Any) -> bool:
    """Whether what is kept beside the entries has the types that `write_info` gives it."""
    kinds = {"ranges": (dict,), "bitwidth": (int, type(None)), "approximate": (bool,),
             "target": (str, type(None)), "strategy": (dict, type(None))}  # fmt: skip
    if not isinstance(own, dict) or not all(
        isinstance(value, kinds[key]) for key, value in own.items() if key in kinds
    ):
        return False
    bits = own.get("bitwidth")
    return bits is None or (not isinstance(bits, bool) and 2 <= bits <= 32)


def load_info(gm: fx.GraphModule, info: dict[str, Any]) -> None:
    """Set the ranges of a simulated model; all entries are checked before any is set.

    Files of other tools are read where their names contain module paths.

    Raises:
        CheckpointError: FXQ622 made for another network, FXQ623 names that cannot be mapped or
            tensors without an entry, FXQ624 an entry that does not fit.
    """
    own = info.get("fxquant")
    if own is not None and info.get("graph_md5") != graph_digest(gm):
        raise CheckpointError(
            "FXQ622",
            "the calibration is of another network, target or strategy",
            fix="calibrate this network, or pass the arguments that it was calibrated with",
        )
    own = own if isinstance(own, dict) else None
    places = dict(slots(gm))
    entries = _mapped(info, places)
    ranges = own.get("ranges", {}) if own is not None else {}
    if not isinstance(ranges, dict):
        raise CheckpointError("FXQ621", "fxquant.ranges is no mapping", fix=_CALIBRATE)
    checked: list[tuple[Any, tuple[Any, Any]]] = []
    for slot, quantizer in places.items():
        if isinstance(quantizer, BiasQuantizeDequantize | FloatQuantizeDequantize):
            continue  # follows from its sources, or has no range
        if slot not in entries:
            what = f"there is no entry for {slot[1]} in {slot[0]!r}"
            raise CheckpointError("FXQ623", what, fix=_CALIBRATE)
        key = f"{slot[0]}:{slot[1]}:{slot[2]}"
        checked.append((quantizer, _range(slot, entries[slot], quantizer, ranges.get(key))))
    for quantizer, (low, high) in checked:
        quantizer.set_range(low, high)


def _mapped(info: dict[str, Any], places: dict[Slot, Any]) -> dict[Slot, Any]:
    entries: dict[Slot, Any] = {}
    unknown: list[str] = []
    for section in _SECTIONS:
        known = {name for s, name, _ in places if s == section}
        for name, values in info[section].items():
            path = name if name in known else _module_path(name)
            if path not in known:
                unknown.append(name)
                continue
            entries |= {(section, path, i): v for i, v in enumerate(values) if v is not None}
    if unknown:
        names = {name for _, name, _ in places}
        reason = nearest(_module_path(unknown[0]), names) or (
            "names that count operators say nothing about modules: calibrate anew"
        )
        what = f"{len(unknown)} name(s) belong to no module of this network: {unknown[0]!r}, ..."
        raise CheckpointError("FXQ623", what, fix=reason)
    return entries


def _module_path(name: str) -> str:
    """The module path in a name of another tool.

    >>> _module_path("Net::Net/Sequential[layer1]/Conv2d[0]/input.3")
    'layer1.0'
    >>> _module_path("Net::layer1.0.weight")
    'layer1.0.weight'
    """
    found = re.findall(r"\[([^\]]+)\]", name)
    return ".".join(found) if found else name.rpartition("::")[2]


def _range(slot: Slot, entry: Any, quantizer: Any, exact: Any) -> tuple[Any, Any]:
    if not isinstance(entry, list) or len(entry) not in (2, 4) or entry[0] != quantizer.bitwidth:
        what = f"{slot[1]}: {entry} does not fit a tensor of {quantizer.bitwidth} bits"
        raise CheckpointError("FXQ624", what, fix="pass the bits and the target of the calibration")
    if any(v is None for v in entry):
        raise CheckpointError("FXQ624", f"{slot[1]} was never calibrated", fix=_CALIBRATE)
    shape, grid = quantizer.shape, quantizer.grid
    try:
        numbers = [torch.tensor(_numeric(n), dtype=torch.float32) for n in entry[1:]]
        scale = numbers[0] if len(entry) == 4 else torch.exp2(-_whole(numbers[0]))
        zero = _whole(numbers[1]) if len(entry) == 4 else torch.tensor(float(grid.middle))
        scale, zero = scale.reshape(shape), zero.expand(scale.shape).reshape(shape)
        low, high = (grid.qmin - zero) * scale, (grid.qmax - zero) * scale
        _check_numbers(scale, low, high)
        if exact is not None:
            first, last = (
                torch.tensor(_numeric(end), dtype=torch.float32).reshape(shape) for end in exact
            )
            _check_numbers(scale, first, last)
            found = grid.scale(first, last) if len(entry) == 4 else quantizer._scale(first, last)
            if torch.equal(found, scale) and torch.equal(grid.zero_point(first, found), zero):
                return first, last  # else the entry was edited, and counts
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        what = f"{slot[1]}: {entry} does not fit a tensor with ranges of shape {shape}: {error}"
        raise CheckpointError("FXQ624", what, fix=_CALIBRATE) from error
    return low, high


def _numeric(value: Any) -> Any:
    """Numbers, or nested lists of them; JSON's true is none, PyTorch would take it for 1."""
    if isinstance(value, list):
        return [_numeric(v) for v in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{value!r} is no number"
        raise TypeError(msg)
    return value


def _whole(x: torch.Tensor) -> torch.Tensor:
    if not torch.equal(x, x.round()):
        msg = f"{x.tolist()} is not whole"
        raise ValueError(msg)
    return x


def _check_numbers(scale: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
    if not bool((scale.isfinite() & (scale > 0)).all()):
        msg = f"a step of {scale.tolist()} is not positive and finite"
        raise ValueError(msg)
    if not bool((low.isfinite() & high.isfinite() & (low < high)).all()):
        msg = f"there is no range from {low.tolist()} to {high.tolist()}"
        raise ValueError(msg)
