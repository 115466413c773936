"""Networks of timm, torchvision and transformers by name; nothing is downloaded.

Every mistake is a `ConfigError` with a code 70x.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from fxquant.errors import ConfigError, nearest

log = logging.getLogger("fxquant")

_CONFIG = "config.json"
_SHOWN = 8  # names listed in one message


def build(spec: str, *, filled: bool) -> nn.Module | None:
    """The network that ``timm:NAME``, ``torchvision:NAME`` or ``hf:FOLDER`` names.

    Args:
        spec: what the command line names.
        filled: whether weights are loaded into it afterwards; else it is told that they are random.

    Returns:
        The network; None where the text names something else.

    Raises:
        ConfigError: FXQ707 the package is not installed, FXQ708 it has no such network, FXQ709 the
            folder is not one of transformers.
    """
    package, colon, name = spec.partition(":")
    zoo = _ZOOS.get(package)
    if zoo is None or not colon:
        return None
    model, random = zoo(name, filled)
    if random and not filled:
        log.warning(
            "%s has RANDOM WEIGHTS: scores mean nothing, and the file is of no use. --weights FILE "
            "gives it trained ones",
            spec,
        )
    return model


def _timm(name: str, filled: bool) -> tuple[nn.Module, bool]:
    timm = _package("timm", "timm")
    if not timm.is_model(name):
        raise _unknown(timm.list_models(), name, "timm")
    return timm.create_model(name, pretrained=False), True


def _torchvision(name: str, filled: bool) -> tuple[nn.Module, bool]:
    models = _package("torchvision.models", "torchvision")
    known = models.list_models()
    if name not in known:
        raise _unknown(known, name, "torchvision")
    return models.get_model(name, weights=None), True


def _transformers(name: str, filled: bool) -> tuple[nn.Module, bool]:
    folder = Path(name)
    if not (folder / _CONFIG).is_file():
        what = f"{name} is no folder with a {_CONFIG}"
        fix = "give the folder that save_pretrained wrote; nothing is downloaded"
        raise ConfigError("FXQ709", what, fix=fix)
    package = _package("transformers", "transformers")
    try:
        config = package.AutoConfig.from_pretrained(folder, local_files_only=True)
        config.use_cache = False  # states of earlier tokens are no outputs of a quantized network
        names = getattr(config, "architectures", None) or ()
        kind = getattr(package, names[0], None) if names else None
        if any(folder.glob("*.safetensors")) and not filled:
            factory = package.AutoModel if kind is None else kind
            model = factory.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True
            )
            return model.float(), False
        return (package.AutoModel.from_config if kind is None else kind)(config), True
    except Exception as error:  # transformers lets through whatever a folder makes it raise
        what = f"transformers cannot build the network of {name}: {error}"
        fix = f"check the {_CONFIG} there, and its architectures"
        raise ConfigError("FXQ709", what, fix=fix) from error


Zoo = Callable[[str, bool], tuple[nn.Module, bool]]
_ZOOS: dict[str, Zoo] = {"timm": _timm, "torchvision": _torchvision, "hf": _transformers}


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # builds that do not fit each other raise more than ImportError
        what = f"the package {package} cannot be imported: {error}"
        fix = f"pip install {package}, in a version that fits torch"
        raise ConfigError("FXQ707", what, fix=fix) from error


def _unknown(known: Iterable[str], name: str, package: str) -> ConfigError:
    names = list(known)
    fix = nearest(name, names) or f"such as {', '.join(names[:_SHOWN])}"
    return ConfigError("FXQ708", f"{package} has no network {name!r}", fix=fix)
