"""Trees: nested containers of what models take and return, and the modules and tensors of a model.

Known containers: list, tuple, namedtuple, dict and its subclasses, dataclasses (Hugging Face's
``ModelOutput`` among them). Everything else is a leaf.

Why not ``named_modules()``: its generators hand every module through all levels above it, and
recording a model asks for them a dozen times.
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


def modules_of(
    root: torch.nn.Module, *, every_path: bool = False
) -> list[tuple[str, torch.nn.Module]]:
    """Path and module of a module and all below it, in the order of ``named_modules()``.

    Args:
        root: the outermost one, whose path is empty.
        every_path: name a module under all of its paths, not only under the first.

    >>> from torch import nn
    >>> [path for path, _ in modules_of(nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU()))]
    ['', '0', '0.0', '1']
    """
    found: list[tuple[str, torch.nn.Module]] = []
    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        path, module = waiting.pop()
        if not every_path:
            if id(module) in seen:
                continue
            seen.add(id(module))
        found.append((path, module))
        if module._modules:
            start = f"{path}." if path else ""
            below = [(start + n, m) for n, m in module._modules.items() if m is not None]
            waiting += reversed(below)
    return found


def tensors_of(root: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Parameters and buffers by name, each tensor once, as ``named_parameters()`` has them.

    >>> from torch import nn
    >>> [list(named) for named in tensors_of(nn.BatchNorm1d(2))]
    [['weight', 'bias'], ['running_mean', 'running_var', 'num_batches_tracked']]
    """
    parameters: dict[str, torch.Tensor] = {}
    buffers: dict[str, torch.Tensor] = {}
    seen: tuple[set[int], set[int]] = set(), set()
    for path, module in modules_of(root):
        start = f"{path}." if path else ""
        both = (module._parameters, parameters, seen[0]), (module._buffers, buffers, seen[1])
        for held, named, known in both:
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in known:
                    known.add(id(tensor))
                    named[start + name] = tensor
    return parameters, buffers
