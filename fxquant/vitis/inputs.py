"""Example inputs as users of `torch_quantizer` give them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxquant.errors import ConfigError


def example_inputs(args: Any, kwargs: Mapping[str, Any] | None) -> Any:
    """Example inputs as the preparation takes them.

    Raises:
        ConfigError: FXQ283, there are none, or both positional and keyword ones.
    """
    if args is None and kwargs is None:
        raise ConfigError("FXQ283", "there are no example inputs", fix="pass input_args=(x,)")
    if args is not None and kwargs:
        what = "positional and keyword example inputs are given together"
        raise ConfigError("FXQ283", what, fix="pass all of them as input_kwargs")
    if args is None:
        return dict(kwargs or {})
    return tuple(args) if isinstance(args, Sequence) else args


def moved_to(module: nn.Module, inputs: Any, device: torch.device) -> tuple[nn.Module, Any]:
    """The network and its inputs on a device; the user's network stays where it is."""

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        if isinstance(value, dict):
            return {k: move(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(move(v) for v in value)
        return value

    there = all(p.device == device for p in module.parameters())
    return module if there else copy.deepcopy(module).to(device), move(inputs)
