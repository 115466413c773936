"""Checkpoints of simulated models: a folder with safetensors and JSON, never pickle.

`model.safetensors` holds every parameter, buffer and range, and what `fxquant.qat.save_training`
adds; tensors that share memory are written once. `checkpoint.json` says what they are: versions,
the graph, the type of every quantizer. The same stands in the metadata of `model.safetensors`: an
older checkpoint is replaced by two renames, and whoever is killed between them leaves new tensors,
which then speak for themselves.
Loading checks everything before it changes anything: a model is as it was or fully loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fxquant._version import __version__
from fxquant.editing import refresh_biases
from fxquant.errors import CheckpointError
from fxquant.graph.printer import dump
from fxquant.io.reading import read_json, reason, require_file
from fxquant.io.state_dicts import write_tensors, wrong_tensors
from fxquant.io.writing import as_path, flush, made_folder, stage
from fxquant.quantization.description import describe_quantizers
from fxquant.quantization.digest import tensors_digest
from fxquant.sim import QuantizationSimModel

FORMAT = 1
TRAINING = "training."  # begins names of tensors that no model has: modules have a flag so called
_TENSORS, _INDEX = "model.safetensors", "checkpoint.json"
_EMBEDDED = "fxquant.checkpoint"  # key of the index in the metadata of the tensors


def save_checkpoint(sim: QuantizationSimModel, path: str | Path) -> None:
    """Write a simulated model's weights, ranges and quantizer types.

    Args:
        sim: the simulation.
        path: a folder that is made, or an older checkpoint that is replaced as a whole.

    Raises:
        CheckpointError: FXQ601, the path is a file, or a folder that holds something else; FXQ542
            to FXQ544, it cannot be written.
    """
    write_folder(sim, path)


@dataclass(frozen=True)
class Training:
    """What lies in a checkpoint beside the model: the state of a training run.

    Attributes:
        values: what JSON can say of it.
        tensors: the others, by names that begin with `TRAINING`.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor]


def write_folder(
    sim: QuantizationSimModel, path: str | Path, training: Training | None = None
) -> None:
    """Write a checkpoint, with the state of a training run where it is given.

    Raises:
        CheckpointError: as `save_checkpoint`.
    """
    _require_simulation(sim)
    target = as_path(path)
    _refuse_foreign(target)
    tensors, aliases = _unique(sim.model.state_dict())
    if training is not None:
        tensors |= training.tensors
    index = {
        "format": FORMAT,
        "fxquant": __version__,
        "torch": torch.__version__,
        "graph": graph_digest(sim),
        "config": sim.config.model_dump(mode="json"),
        "target": sim.target.name,
        "quantizers": describe_quantizers(sim.model),
        "aliases": aliases,
        "content_sha256": tensors_digest(tensors),
    }
    if training is not None:
        index["training"] = training.values
        index["training_sha256"] = _digest_of_values(training.values)
    # beside the target, as renaming across file systems is a copy
    with (
        made_folder(target.parent, error=CheckpointError) as parent,
        stage(parent, target.name, error=CheckpointError) as work,
    ):
        folder = work / "new"
        folder.mkdir()
        write_tensors(tensors, folder / _TENSORS, {_EMBEDDED: json.dumps(index, sort_keys=True)})
        index["tensors_sha256"] = _sha256(folder / _TENSORS)
        (folder / _INDEX).write_text(json.dumps(index, indent=1, sort_keys=True), encoding="utf-8")
        _publish(folder, target)


def load_checkpoint(sim: QuantizationSimModel, path: str | Path) -> None:
    """Load what `save_checkpoint` wrote into a simulation of the same model.

    Args:
        sim: simulation of the same model with the same configuration; it is unchanged if the
            checkpoint is refused.
        path: the folder.

    Raises:
        CheckpointError: FXQ602 missing, FXQ603 damaged, FXQ604 made by a newer version, FXQ605 of
            another graph or configuration, FXQ606 tensors do not fit, FXQ607 weights or ranges are
            NaN, infinite or empty.
    """
    tensors, _ = read_folder(sim, path)
    sim.model.load_state_dict(tensors)


def setup_of(path: str | Path) -> tuple[Any, str, dict[str, Any]]:
    """Configuration, target and descriptions of the quantizers of what was saved."""
    index, _ = _read(as_path(path))
    return index["config"], str(index["target"]), index["quantizers"]


def read_folder(
    sim: QuantizationSimModel, path: str | Path
) -> tuple[dict[str, Tensor], Training | None]:
    """What a checkpoint holds, checked to fit a simulation, which is not changed yet.

    Returns:
        A state dict for the model, and the state of a training run if the checkpoint has one.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    _require_simulation(sim)
    folder = as_path(path)
    index, tensors = _read(folder)
    refresh_biases(sim.model)  # quantizers may have been assigned by hand
    _check_fits(sim, index)
    training = _training_of(index, tensors, folder)
    tensors |= {n: tensors[str(of)] for n, of in index["aliases"].items() if str(of) in tensors}
    _check_tensors(sim.model.state_dict(), tensors)
    _check_values(sim, index["quantizers"], tensors)
    return tensors, training


def _training_of(
    index: dict[str, Any], tensors: dict[str, Tensor], folder: Path
) -> Training | None:
    """The state of a training run, taken out of the tensors of a checkpoint."""
    values = index.get("training")
    if values is None:
        return None
    if not isinstance(values, dict) or _digest_of_values(values) != index.get("training_sha256"):
        what = f"{folder} is damaged: the checksum of its training state differs"
        raise CheckpointError("FXQ603", what, fix=_AGAIN)
    own = [name for name in tensors if name.startswith(TRAINING)]
    return Training(values, {name: tensors.pop(name) for name in own})


def _digest_of_values(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


_AGAIN = "save the checkpoint again, or take another copy"
_EDITS = "build the simulation in the same way, and edit it in the same way before loading"


def _require_simulation(sim: Any) -> None:
    if not isinstance(sim, QuantizationSimModel):
        what = f"a checkpoint is of a QuantizationSimModel, not of a {type(sim).__name__}"
        raise CheckpointError("FXQ600", what, fix="pass the simulation, then the path")


def _refuse_foreign(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError("FXQ601", f"{target} is a file", fix="give the path of a folder")
    if any(p.name not in (_TENSORS, _INDEX) for p in target.iterdir()):
        raise CheckpointError(
            "FXQ601", f"the folder {target} holds other files", fix="give the path of a new folder"
        )


def _publish(folder: Path, target: Path) -> None:
    """Give the files their names; the tensors first, as they can do without the index."""
    for name in (_TENSORS, _INDEX):
        flush(folder / name)
    flush(folder)
    if target.exists():
        for name in (_TENSORS, _INDEX):
            os.replace(folder / name, target / name)
        flush(target)
    else:
        os.replace(folder, target)
    flush(target.parent)


def _unique(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors without repetition, and name -> name for those that are the same memory."""
    seen: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, aliases


def graph_digest(sim: QuantizationSimModel) -> str:
    """A checksum of the operators of a simulation and how they are connected."""
    # whether a module is quantized is told by its quantizers, and better
    text = re.sub("= (quantized_|Quantized)", "= ", dump(sim.model))
    return hashlib.sha256(text.encode()).hexdigest()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Index and tensors; read again if another process has saved meanwhile."""
    for left in reversed(range(_READINGS)):
        before = _identity(folder / _TENSORS)
        try:
            index = _read_index(folder)
            tensors = _read_tensors(folder / _TENSORS)
            if _sha256(folder / _TENSORS) != index.get("tensors_sha256"):
                index = _embedded_index(folder / _TENSORS, tensors)
        except CheckpointError:
            if not left or _identity(folder / _TENSORS) == before:
                raise
            continue
        if _identity(folder / _TENSORS) == before:
            return index, tensors
    what = f"{folder} is being written by another process again and again"
    raise CheckpointError("FXQ603", what, fix="load it when the other process has finished")


_READINGS = 20


def _identity(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        require_file(path)
        return load_file(path)
    except OSError as error:
        what = f"cannot read {path}: {reason(error)}"
        fix = "give a folder that save_checkpoint wrote, with all of its files"
        raise CheckpointError("FXQ602", what, fix=fix) from error
    except Exception as error:  # the parser's own, and those of tensors that do not fit its header
        raise CheckpointError(
            "FXQ603", f"cannot read {path}: {reason(error)}", fix=_AGAIN
        ) from error


def _embedded_index(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What the tensors say of themselves: the index is that of an older checkpoint, or damaged."""
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(_EMBEDDED, "")
    try:
        index = json.loads(text)
        whole = index["content_sha256"] == tensors_digest(tensors)
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointError("FXQ603", f"{path} is damaged: its checksum differs", fix=_AGAIN)
    return _checked_index(index, path)


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    try:
        index = read_json(path)
    except OSError as error:
        raise CheckpointError(
            "FXQ602",
            f"there is no checkpoint at {folder}",
            fix="give the folder that save_checkpoint wrote",
        ) from error
    except ValueError as error:
        raise CheckpointError(
            "FXQ603", f"{path} is damaged: {reason(error)}", fix=_AGAIN
        ) from error
    return _checked_index(index, path)


def _checked_index(index: Any, path: Path) -> dict[str, Any]:
    known = {"format", "graph", "config", "target", "quantizers", "aliases"}
    if not isinstance(index, dict) or not known <= set(index):
        raise CheckpointError("FXQ603", f"{path} is not the index of a checkpoint", fix=_AGAIN)
    if index["format"] != FORMAT:
        what = f"the checkpoint has format {index['format']}, this version reads {FORMAT}"
        raise CheckpointError("FXQ604", what, fix=f"load it with fxquant {index.get('fxquant')}")
    tables = [index["aliases"], index["quantizers"]]
    if all(isinstance(t, dict) for t in tables):
        tables += index["quantizers"].values()
    if not all(isinstance(t, dict) for t in tables):
        raise CheckpointError("FXQ603", f"{path} is not the index of a checkpoint", fix=_AGAIN)
    return index


def _check_fits(sim: QuantizationSimModel, index: dict[str, Any]) -> None:
    if index["graph"] != graph_digest(sim):
        raise CheckpointError(
            "FXQ605",
            "the checkpoint is of another graph",
            fix="build the simulation from the same model and dummy input",
        )
    for key, mine in (("config", sim.config.model_dump(mode="json")), ("target", sim.target.name)):
        if index[key] != mine:
            raise CheckpointError(
                "FXQ605",
                f"the checkpoint has another {key}: {index[key]}, not {mine}",
                fix=f"build the simulation with the same {key}",
            )
    _check_quantizers(describe_quantizers(sim.model), index["quantizers"])


def _check_quantizers(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name in sorted(mine.keys() | theirs.keys()):
        here, there = mine.get(name), theirs.get(name)
        if here is None or there is None:
            where = "the checkpoint" if here is None else "the simulation"
            what = f"only {where} has a quantizer {name}"
            raise CheckpointError("FXQ605", what, fix=_EDITS)
        for key in ("class", *sorted((here.keys() | there.keys()) - {"initialized"})):
            if here.get(key) != there.get(key):
                what = f"{key} of quantizer {name} is {there.get(key)}, here {here.get(key)}"
                raise CheckpointError("FXQ605", what, fix=_EDITS)


_SAME_MODEL = "build the simulation from the model and the configuration that were saved"


def _check_tensors(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Refuse before anything is copied: a load must not be partial."""
    missing, unknown = mine.keys() - theirs.keys(), theirs.keys() - mine.keys()
    if missing or unknown:
        what = f"tensors do not fit: missing {sorted(missing)[:5]}, unknown {sorted(unknown)[:5]}"
        raise CheckpointError("FXQ606", what, fix=_SAME_MODEL)
    for name, tensor in theirs.items():
        if tensor.shape != mine[name].shape or tensor.dtype != mine[name].dtype:
            what = (
                f"{name} is {tensor.dtype} {list(tensor.shape)}, "
                f"here {mine[name].dtype} {list(mine[name].shape)}"
            )
            raise CheckpointError("FXQ606", what, fix=_SAME_MODEL)


def _check_values(
    sim: QuantizationSimModel, quantizers: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Refuse numbers that nothing can be computed with; a range not calibrated yet may be NaN."""
    ranges = {f"{name}.{end}" for name, _ in sim.named_quantizers() for end in ("min", "max")}
    weights = {name: t for name, t in tensors.items() if name not in ranges}
    wrong = list(wrong_tensors(sim.model, weights))
    for name, _ in sim.named_quantizers():
        low, high = (tensors.get(f"{name}.{end}") for end in ("min", "max"))
        if low is None or high is None:
            continue
        if not isinstance(quantizers[name].get("initialized"), bool):
            wrong.append(f"{name} does not say whether it has a range")
        elif quantizers[name]["initialized"] and not _is_range(low, high):
            wrong.append(f"{name} has no range from {low.tolist()} to {high.tolist()}")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError("FXQ607", f"in the checkpoint {wrong[0]}{more}", fix=_AGAIN)


def _is_range(low: Tensor, high: Tensor) -> bool:
    return bool(low.isfinite().all() and high.isfinite().all() and (low <= high).all())
