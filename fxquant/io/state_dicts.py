"""State dicts as trainers write them: found in their checkpoints, named as the model's, checked.

Nothing here reads files. What a tensor may hold is checked before it gets into a model: integers in
the place of floats are another tool's quantized weights, and NaN makes every range NaN.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

log = logging.getLogger("fxquant")

# keys under which training scripts keep the weights; averaged ones are the second choice
_HOMES = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
)
_AVERAGES = ("ema", "model_ema", "ema_state_dict", "state_dict_ema", "ema_model")
# parts of names that wrappers of modules put in: DataParallel, torch.compile, FSDP, checkpointing
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside the weights
_DEPTH = 4  # mappings inside each other


def located(loaded: Any, where: str = "") -> tuple[tuple[str, ...], dict[str, Tensor]] | None:
    """The state dict in what a training script saved, and the keys that lead to it; or None.

    Args:
        loaded: a state dict, or a mapping that holds one under one of the usual keys.
        where: how messages call the file.

    Example:
        >>> located({"model": {"w": torch.ones(1)}, "optimizer": {}, "epoch": 3})
        (('model',), {'w': tensor([1.])})
    """
    return _located(loaded, where, _DEPTH)


def _located(
    loaded: Any, where: str, depth: int
) -> tuple[tuple[str, ...], dict[str, Tensor]] | None:
    if not isinstance(loaded, Mapping) or not depth:
        return None
    if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        return (), dict(loaded)
    found = [
        ((key, *inside[0]), inside[1])
        for key in (*_HOMES, *_AVERAGES)
        if isinstance(loaded.get(key), Mapping)
        and (inside := _located(loaded[key], where, depth - 1))
        and inside[1]
    ]
    if len(found) > 1:
        others = ", ".join(repr(keys[0]) for keys, _ in found[1:])
        log.warning("%s: %r is taken; it also holds %s", where, found[0][0][0], others)
    return found[0] if found else None


def renamed(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict under the names of a model, where only what wraps the model differs.

    Names are taken as they are if they fit; else without the parts that DataParallel,
    `torch.compile` and their like put in; else without a first part that all of them share.

    Args:
        state: what was read.
        own: the model's state dict.
    """
    if state.keys() == own.keys():
        return dict(state)
    plain = {_plain(name): name for name in own}
    given = {_plain(name): name for name in state if name != _COUNTER or name in own}
    if len(plain) == len(own) and len(given) >= len(state) - (_COUNTER in state):
        for _ in range(_DEPTH):
            if given.keys() == plain.keys():
                return {plain[short]: state[name] for short, name in given.items()}
            firsts = {name.partition(".")[0] for name in given}
            if len(firsts) != 1 or not all("." in name for name in given):
                break
            given = {short.partition(".")[2]: name for short, name in given.items()}
    return dict(state)


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def wrong_tensors(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[str]:
    """What the tensors of a state dict cannot be taken for, one text for each.

    Args:
        model: whose parameters and buffers they are to become.
        state: tensors by the names of the model's state dict; other names are passed over.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mine in model.state_dict().items():
        given = state.get(name)
        if given is None or not isinstance(mine, Tensor):
            continue
        found = _wrong_type(mine, given) or _wrong_values(mine, given, name, name in parameters)
        if found:
            yield f"{name} {found}"


def _wrong_type(mine: Tensor, given: Tensor) -> str | None:
    if given.is_quantized or given.layout is not torch.strided or given.is_meta:
        return f"is {given.dtype}, {given.layout}: no plain tensor"
    real, kind = given.is_floating_point(), given.dtype
    if mine.is_floating_point():
        fits = real and kind.itemsize > 1  # eight bits need a scale that is not here
    elif mine.is_complex():
        fits = given.is_complex()
    elif mine.dtype is torch.bool:
        fits = kind in (torch.bool, torch.uint8)
    else:
        fits = not real and not given.is_complex() and kind is not torch.bool
    return None if fits else f"holds {kind} where the model has {mine.dtype}"


def _wrong_values(mine: Tensor, given: Tensor, name: str, is_parameter: bool) -> str | None:
    """NaN anywhere; infinity where it is no mask."""
    if not mine.is_floating_point() and not mine.is_complex():
        return None
    values = given.to(mine.dtype)  # what is too large for the model's type is infinite there
    if bool(values.isnan().any()):
        return "holds NaN"
    statistic = name.rpartition(".")[2] in ("running_mean", "running_var")
    if (is_parameter or statistic) and not bool(values.isfinite().all()):
        return "holds infinity"
    return None


def write_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file that has the permissions of any new file.

    Raises:
        OSError: it cannot be written.
    """
    path.touch()  # safetensors lets only the owner read what it writes, whatever the umask says
    mode = path.stat().st_mode
    try:
        save_file(tensors, str(path), metadata=metadata)
    except SafetensorError as error:  # which has no numbers of the system's errors
        raise OSError(str(error)) from error
    path.chmod(mode)
