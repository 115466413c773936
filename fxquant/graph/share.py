"""Twins: modules of their own that share what they learn."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)

# the dictionaries themselves are shared, not only the tensors in them: `.to(dtype)` replaces the
# buffers of a module, and twins must still have the same ones afterwards
_SHARED = ("_parameters", "_buffers", "_non_persistent_buffers_set")


def twin(module: M) -> M:
    """A module that computes the same with the same parameters and buffers.

    Training flag, hooks (the same callables) and plain attributes are taken over; submodules become
    twins.
    """
    made: M = module.__new__(type(module))
    state: dict[str, Any] = {}
    for key, value in module.__dict__.items():
        copied = isinstance(value, dict | list | set) and key not in _SHARED
        state[key] = value.copy() if copied else value
    state["_modules"] = {k: m and twin(m) for k, m in module._modules.items()}
    made.__dict__.update(state)
    return made
