"""Nested containers of tensors: walking, rebuilding and comparing what models take and return.

Known containers: list, tuple, namedtuple, dict and its subclasses, dataclasses (Hugging Face's
``ModelOutput`` among them). Everything else is a leaf.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch.fx.immutable_collections import immutable_dict

# how a part is reached from the whole: an index or key, or the name of an attribute
Step: TypeAlias = tuple[str, Any]


def parts(value: object) -> list[tuple[Step, Any]] | None:
    """Direct parts of a container with the step that reaches each; None for a leaf.

    >>> parts({"a": 1})
    [(('item', 'a'), 1)]
    """
    if is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in fields(value)]
        return [(("attribute", n), getattr(value, n)) for n in names if hasattr(value, n)]
    if isinstance(value, dict):
        return [(("item", k), v) for k, v in value.items()]
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return [(("item", i), v) for i, v in enumerate(value)]
    return None


def leaves(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves with their paths such as ``[0].logits``; None counts as a leaf."""
    found = parts(value)
    if found is None:
        yield path, value
        return
    for (how, key), part in found:
        yield from leaves(part, f"{path}.{key}" if how == "attribute" else f"{path}[{key!r}]")


def tensors(value: object) -> list[torch.Tensor]:
    """All tensors inside a nested value, in order."""
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, torch.Tensor)]


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a nested value with every leaf replaced; containers keep their types."""
    if is_dataclass(value) and not isinstance(value, type):
        return _map_dataclass(value, change)
    if isinstance(value, immutable_dict):  # what a graph holds as arguments of its nodes
        return {key: map_leaves(part, change) for key, part in value.items()}
    if isinstance(value, dict):
        changed = copy.copy(value)
        for key, part in value.items():
            changed[key] = map_leaves(part, change)
        return changed
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        # not the class itself: a packed sequence looks at what it is made of
        make: Callable[[Any], Any] = type(value)._make  # type: ignore[attr-defined]
        return make(map_leaves(part, change) for part in value)
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return type(value)(map_leaves(part, change) for part in value)
    return change(value)


def _map_dataclass(value: Any, change: Callable[[Any], Any]) -> Any:
    changed = copy.copy(value)
    for field in fields(value):
        if not hasattr(value, field.name):
            continue
        part = map_leaves(getattr(value, field.name), change)
        # frozen dataclasses refuse plain assignment
        object.__setattr__(changed, field.name, part)
        if isinstance(changed, dict) and field.name in changed:
            dict.__setitem__(changed, field.name, part)
    return changed


def fresh_inputs(value: Any) -> Any:
    """A copy of a model's inputs in which every tensor is its own memory."""

    def fresh(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        with torch.no_grad():
            copied = leaf.detach().clone()
        if leaf.requires_grad:
            copied.requires_grad_()
        return copied

    return map_leaves(value, fresh)


def samples_of(batch: Any) -> int:
    """Samples of a batch: the first size of the first tensor that has one; 0 where one is empty."""
    found = tensors(batch)
    if any(t.numel() == 0 for t in found):
        return 0
    return next((len(t) for t in found if t.dim()), 1)
