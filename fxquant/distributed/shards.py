"""Shards: statistics of parts of the data in files, written anywhere and merged later.

A shard is one safetensors file that gets its name when it is whole. Its metadata say of which
model, configuration, scheme and weights it is, and which part of how many.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from fxquant import calibrate
from fxquant import nn as qnn
from fxquant._version import __version__
from fxquant.distributed.identity import calibration_identity
from fxquant.distributed.statistics_of import Merging, collected, require_mergeable
from fxquant.editing import refresh_biases
from fxquant.errors import CheckpointError
from fxquant.fingerprint import mark_calibrated
from fxquant.io.reading import reason, require_file
from fxquant.io.state_dicts import write_tensors
from fxquant.io.writing import as_path, new_file
from fxquant.quantization.digest import tensors_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, fx

    from fxquant.sim import QuantizationSimModel

FORMAT = 1
_KEY = "fxquant.statistics"
_SAME = "build the simulation as for the shards: same model, weights, configuration and scheme"
_AGAIN = "write the shard again, or take another copy"


@dataclass(frozen=True)
class MergedShards:
    """What was merged.

    Attributes:
        files: the shards, in their order.
        batches: batches that they have seen together.
    """

    files: tuple[Path, ...]
    batches: int

    def __str__(self) -> str:
        return f"{len(self.files)} shard(s) with {self.batches} batches"


def save_statistics(
    sim: QuantizationSimModel,
    data: Callable[..., Any] | Iterable[Any],
    path: str | Path,
    *,
    shard: tuple[int, int] = (1, 1),
    progress: calibrate.Progress | None = None,
    threads: int | None = 1,
) -> Path:
    """Run a part of the calibration data and write what quantizers have seen.

    Ranges of activations stay as they are.

    Args:
        sim: the simulation.
        data: the part: batches or a callback, as for `sim.compute_encodings`.
        path: the file; `.safetensors` is the usual suffix.
        shard: number of the part, from 1 on, and how many there are.
        progress: called after each batch.
        threads: of torch, as for `sim.compute_encodings`.

    Returns:
        The file.

    Raises:
        CheckpointError: FXQ610 the numbers of the shard are wrong; FXQ542 to FXQ545, the file
            cannot be written.
        TrainingError: FXQ813, the scheme depends on the order of the data.
        CalibrationError: the part is empty (FXQ430) or wrong.
    """
    file = as_path(path)
    number, count = _checked_numbers(shard)
    require_mergeable(sim.model)
    seen: dict[str, Tensor] = {}
    batches = 0

    def advance(done: int, total: int | None) -> None:
        nonlocal batches
        batches = done
        if progress is not None:
            progress(done, total)

    def keep(model: fx.GraphModule) -> None:
        seen.update(collected(model))
        Merging(model).give()  # nothing was seen: ranges stay

    refresh_biases(sim.model)
    calibrate.calibrate(sim.model, data, progress=advance, threads=threads, merge=keep)
    index = {
        "format": FORMAT, "fxquant": __version__, "shard": number, "count": count,
        "batches": batches, "identity": calibration_identity(sim),
        "content_sha256": tensors_digest(seen),
    }  # fmt: skip
    with new_file(file, error=CheckpointError) as work:
        write_tensors(seen, work, {_KEY: json.dumps(index, sort_keys=True)})
    return file


def merge_statistics(
    sim: QuantizationSimModel, paths: str | Path | Iterable[str | Path]
) -> MergedShards:
    """Calibrate on shards: encodings are those of one process that saw all their batches.

    Args:
        sim: simulation of the same model; it is unchanged if a shard is refused.
        paths: the files of all shards, in any order, or their folder.

    Raises:
        CheckpointError: FXQ611 a shard is missing, FXQ612 damaged, FXQ613 of another model,
            configuration, scheme or other weights, FXQ614 given twice or of another number.
        TrainingError: FXQ813, the scheme depends on the order of the data.
    """
    require_mergeable(sim.model)
    refresh_biases(sim.model)
    files = _files(paths)
    merging, identity = Merging(sim.model), calibration_identity(sim)
    found: dict[int, Path] = {}
    batches, count = 0, 0
    for file in files:
        index, tensors = _read(file)
        _check_identity(file, index["identity"], identity)
        count = count or index["count"]
        number = index["shard"]
        if index["count"] != count:
            what = f"{file} is one of {index['count']} shards, {files[0]} one of {count}"
            raise CheckpointError("FXQ614", what, fix="give the shards of one calibration")
        if number in found:
            what = f"{file} and {found[number]} are both shard {number} of {count}"
            raise CheckpointError("FXQ614", what, fix="give every shard once")
        found[number] = file
        batches += index["batches"]
        try:
            merging.take(tensors)
        except ValueError as error:
            raise CheckpointError("FXQ612", f"{file}: {reason(error)}", fix=_AGAIN) from error
    missing = [str(n) for n in range(1, count + 1) if n not in found]
    if missing:
        what = f"of {count} shards there is none of number {', '.join(missing)}"
        raise CheckpointError("FXQ611", what, fix="give all shards; merging some is not exact")
    with calibrate.using_threads(1), torch.no_grad(), qnn.compute_encodings(sim.model):
        merging.give()
    mark_calibrated(sim.model)
    return MergedShards(tuple(found[n] for n in sorted(found)), batches)


def _checked_numbers(shard: Any) -> tuple[int, int]:
    numbers = tuple(shard) if isinstance(shard, (tuple, list)) else ()
    if len(numbers) == 2 and all(type(n) is int for n in numbers) and 1 <= numbers[0] <= numbers[1]:
        return numbers[0], numbers[1]
    what = f"the number of a shard and how many there are cannot be {shard!r}"
    raise CheckpointError("FXQ610", what, fix="pass (1, 4) for the first of four, up to (4, 4)")


def _files(paths: Any) -> list[Path]:
    if isinstance(paths, (list, tuple, set, frozenset)):
        files = [as_path(p) for p in paths]
    else:
        path = as_path(paths)
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        what = f"there is no shard in {paths}"
        raise CheckpointError("FXQ611", what, fix="give the files that save_statistics wrote")
    return files


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        require_file(file)
        with safe_open(file, "pt") as opened:
            index = json.loads((opened.metadata() or {}).get(_KEY, "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except OSError as error:
        what = f"cannot read the shard {file}: {reason(error)}"
        raise CheckpointError("FXQ611", what, fix="give the files of all shards") from error
    except Exception as error:  # the parser's own, and those of tensors that do not fit its header
        what = f"the shard {file} is damaged: {reason(error)}"
        raise CheckpointError("FXQ612", what, fix=_AGAIN) from error
    _check_index(file, index)
    if index["content_sha256"] != tensors_digest(tensors):
        what = f"the shard {file} is damaged: its checksum differs"
        raise CheckpointError("FXQ612", what, fix=_AGAIN)
    return index, tensors


def _check_index(file: Path, index: Any) -> None:
    numbers = ("format", "shard", "count", "batches")
    if not isinstance(index, dict) or not all(type(index.get(n)) is int for n in numbers):
        what = f"{file} holds no statistics of a calibration"
        raise CheckpointError("FXQ612", what, fix="give the files that save_statistics wrote")
    if index["format"] != FORMAT:
        what = f"{file} has format {index['format']}, this version reads {FORMAT}"
        raise CheckpointError("FXQ612", what, fix=f"merge with fxquant {index.get('fxquant')}")
    whole = isinstance(index.get("identity"), dict) and isinstance(index.get("content_sha256"), str)
    if not whole or not 1 <= index["shard"] <= index["count"]:
        raise CheckpointError("FXQ612", f"the shard {file} is damaged", fix=_AGAIN)


def _check_identity(file: Path, theirs: dict[str, Any], mine: dict[str, str]) -> None:
    for name, text in mine.items():
        if theirs.get(name) != text:
            told = f": {theirs.get(name)}, not {text}" if name == "scheme" else ""
            what = f"the shard {file} differs from the simulation in its {name}{told}"
            raise CheckpointError("FXQ613", what, fix=_SAME)
