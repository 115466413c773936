"""Networks and weights that the command line names; no pickle is ever run.

Every mistake is a `ConfigError` with a code 70x (factory) or 71x (weights).
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fxquant.cli import model_zoos
from fxquant.errors import ConfigError, FxQuantError, nearest
from fxquant.io.reading import Budget, Metered, Refused, reason, require_archive, require_file
from fxquant.io.state_dicts import located, renamed, wrong_tensors
from fxquant.io.writing import as_path

Say = Callable[[str], None]
_SHOWN = 4  # names listed in one message
_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar")

# what the user's code may raise; `sys.exit()` there would end the command without a word
RAISED = (Exception, SystemExit)


# --- factories -----------------------------------------------------------------------------------


def load_function(spec: str, *, what: str = "factory") -> Callable[..., Any]:
    """The function that ``path.py:function`` or ``package.module:function`` names.

    Args:
        spec: where it is; a path is relative to the current folder.
        what: how messages call it.

    Raises:
        ConfigError: FXQ701 to FXQ704.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise ConfigError(
            "FXQ701",
            f"the {what} {spec!r} is not of the form path.py:function or package.module:function",
            fix=f"write for example models/digits.py:resnet18 instead of {spec!r}",
        )
    module = _module_of_file(Path(where), what) if _is_path(where) else _module(where, what)
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    fix = nearest(name, known) or f"functions there: {', '.join(known[:12]) or 'none'}"
    raise ConfigError("FXQ704", f"{where} has no function {name!r}", fix=fix)


def build_model(
    spec: str, weights: str | Path | None = None, *, say: Say | None = None
) -> nn.Module:
    """Call a factory, load weights into its network and set it to evaluation mode.

    Args:
        spec: ``path.py:function`` or ``package.module:function``; it is called without arguments.
            ``timm:NAME``, ``torchvision:NAME`` and ``hf:FOLDER`` are networks of these packages.
        weights: a file for `load_weights`; None keeps what the factory set.
        say: is told where in a checkpoint weights were found.

    Raises:
        ConfigError: FXQ701 to FXQ709, FXQ710 to FXQ715.
    """
    if weights is not None:
        require_weights(weights)  # before a network is built
    model = model_zoos.build(spec, filled=weights is not None)
    if model is None:
        model = call(load_function(spec), spec)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "FXQ706",
            f"{spec} returned a {type(model).__name__}, not a torch.nn.Module",
            fix="the factory takes no arguments and returns the network",
        )
    if weights is not None:
        _fill(model, load_weights(weights, say=say), Path(weights))
    return model.eval()


def _is_path(where: str) -> bool:
    return where.endswith(".py") or "/" in where or "\\" in where


def _module_of_file(path: Path, what: str) -> Any:
    if not path.is_file():
        fix = "write FILE.py:FUNCTION with a path from the current folder"
        raise ConfigError("FXQ702", f"the {what}'s file {path} does not exist", fix=fix)
    path = path.resolve()
    name = f"fxquant_user_{path.stem}_{abs(hash(path))}"
    if name in sys.modules:
        return sys.modules[name]
    location = importlib.util.spec_from_file_location(name, path)
    if location is None or location.loader is None:
        raise ConfigError("FXQ703", f"{path} is not a Python file", fix="name a file *.py")
    module = importlib.util.module_from_spec(location)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up
    sys.path.insert(0, str(path.parent))  # as `python path.py` does
    try:
        location.loader.exec_module(module)
    except RAISED as error:  # the user's file may raise anything; say which file it was
        del sys.modules[name]
        raise failed(error, f"importing {path} failed") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _module(name: str, what: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as `python -m` does
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and not (name + ".").startswith(error.name + "."):
            raise failed(error, f"importing {name} failed") from error
        raise ConfigError(
            "FXQ703",
            f"the {what}'s module {name!r} cannot be found",
            fix="install it, run from its parent folder, or write path/to/file.py:function",
        ) from error
    except RAISED as error:  # the user's module may raise anything; say which module it was
        raise failed(error, f"importing {name} failed") from error
    finally:
        sys.path.remove(here)


def call(function: Callable[..., Any], spec: str) -> Any:
    """What a user's function returns; what it raises becomes a `ConfigError` FXQ705."""
    try:
        return function()
    except FxQuantError:
        raise
    except RAISED as error:  # the user's function may raise anything; say which one it was
        raise failed(error, f"calling {spec} failed") from error


def failed(error: BaseException, what: str) -> ConfigError:
    """An error of the user's code, as an error of ours that quotes it."""
    fix = "the traceback is shown with --debug"
    what = f"{what}, the code there raised {type(error).__name__}: {error}"
    return ConfigError("FXQ705", what, fix=fix)


# --- weights -------------------------------------------------------------------------------------


def load_weights(path: str | Path, *, say: Say | None = None) -> dict[str, Tensor]:
    """A state dict from ``.safetensors``, or from a file of `torch.save` without pickles run.

    Checkpoints of training scripts, `{"model": ..., "epoch": 3}` and their like, are looked into.

    Args:
        path: the file.
        say: is told where in a checkpoint they were found.

    Raises:
        ConfigError: FXQ710 no such file, FXQ711 another kind of file, FXQ712 damaged or unsafe,
            FXQ713 not a state dict.
    """
    path = require_weights(path)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix not in _TORCH:
        raise ConfigError(
            "FXQ711",
            f"weights of type {path.suffix or 'no suffix'!r} are not supported: {path}",
            fix="save them as .safetensors, or with torch.save(model.state_dict(), 'model.pt')",
        )
    return _state_dict(_torch_file(path), path, say)


def require_weights(path: str | Path) -> Path:
    """The path of a file of weights that exists.

    Raises:
        ConfigError: FXQ710, it does not.
    """
    path = as_path(path, "weights")
    if not path.exists():
        fix = "give the path of a .safetensors or .pt file, or leave --weights out"
        raise ConfigError("FXQ710", f"the weights' file {path} does not exist", fix=fix)
    return path


_AGAIN = "write the file again, or take another copy"


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        require_file(path)
        return load_file(path)
    except Exception as error:  # the parser's own, and torch's of tensors that do not fit
        what = f"{path} is not a safetensors file: {reason(error)}"
        raise ConfigError("FXQ712", what, fix=_AGAIN) from error


def _torch_file(path: Path) -> Any:
    try:
        budget = Budget(require_file(path))
        archived = zipfile.is_zipfile(path)  # what torch has written for years; older are no zip
        if archived:
            require_archive(path)
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # of old formats, and of what damage looks like
            source = path if archived else Metered(file, budget)
            loaded = torch.load(source, map_location="cpu", weights_only=True)  # type: ignore[arg-type]
        _require_stored(loaded)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            "FXQ712",
            f"{path} is damaged, or holds more than tensors and was refused",
            fix="save the state dict alone: torch.save(model.state_dict(), 'model.pt')",
        ) from error
    except Exception as error:  # torch lets through whatever damage makes of a pickle
        what = f"{path} cannot be read: {reason(error)}"
        raise ConfigError("FXQ712", what, fix=_AGAIN) from error
    return loaded


def _require_stored(loaded: Any) -> None:
    """Refuse tensors that repeat few bytes: whoever copied them would need all that they show."""
    waiting, seen = [loaded], {id(loaded)}  # a pickle may hold one mapping in many places
    while waiting:
        mapping = waiting.pop()
        for value in mapping.values() if isinstance(mapping, Mapping) else ():
            if isinstance(value, Mapping) and id(value) not in seen:
                seen.add(id(value))
                waiting.append(value)
            _require_own_bytes(value)


def _require_own_bytes(value: Any) -> None:
    if isinstance(value, Tensor) and value.layout == torch.strided:
        have = value.untyped_storage().nbytes()
        if value.numel() * value.element_size() > have:
            msg = f"a tensor of {list(value.shape)} is stored in {have} bytes"
            raise Refused(msg)


def _state_dict(loaded: Any, path: Path, say: Say | None) -> dict[str, Tensor]:
    found = located(loaded, str(path))
    if found is not None:
        keys, state = found
        if keys and say is not None:
            say(f"{path}: the weights are those under {'.'.join(keys)!r}")
        return state
    raise ConfigError(
        "FXQ713",
        f"{path} holds no state dict: a mapping of names to tensors",
        fix="save it with torch.save(model.state_dict(), 'model.pt')",
    )


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    state = renamed(state, own)
    problems = [
        f"{name} is {list(state[name].shape)} in the file and {list(value.shape)} in the model"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    for what, names in (("unknown", unknown), ("missing", missing)):
        if names:
            problems.insert(0, f"{what} {_names(names)}")
    if problems:
        shown = "; ".join(problems[:_SHOWN])
        raise ConfigError(
            "FXQ714",
            f"the weights do not fit the model: {shown}",
            at=str(path),
            fix="use the factory that the weights were saved from",
        )
    wrong = list(wrong_tensors(model, state))
    if wrong:
        shown = "; ".join(wrong[:_SHOWN]) + (f"; {len(wrong)} in all" if len(wrong) > 1 else "")
        fix = "take the floating-point weights of the training, without NaN"
        raise ConfigError("FXQ715", f"the weights cannot be taken: {shown}", at=str(path), fix=fix)
    model.load_state_dict(state)


def _names(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
