"""Forward hooks of leaf modules: which of them watch and which change what the module computes.

A hook that returns another value, or writes into the one it sees, is part of the computation: what
it does is recorded behind (or before) its module, and the graph's module no longer has the hook. A
hook that only looks stays on the module and runs whenever the module does.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fxquant.graph.pytree import leaves

_REGISTRIES = ("_forward_pre_hooks", "_forward_hooks")
_FLAGS = (
    "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
)  # fmt: skip
_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether forward hooks of the author's run around a module.

    >>> hooked(nn.Linear(2, 2))
    False
    """
    return any(not _is_torchs(hook) for name in _REGISTRIES for hook in vars(module)[name].values())


def _is_torchs(hook: Any) -> bool:
    """Whether it is a part of torch, such as the older weight norm, that computes a parameter."""
    return type(hook).__module__.startswith("torch.nn.utils")


@contextmanager
def around(
    module: nn.Module,
    run: Callable[..., Any],
    forward: Callable[..., Any] | None = None,
) -> Iterator[None]:
    """Have `run(key, hook, module, *given)` called in the place of each of the author's hooks.

    Args:
        module: whose hooks they are.
        run: gets the hook's key, the hook and its arguments.
        forward: called in the place of the module's own; backward hooks are left out then.
    """
    before = dict(vars(module))
    for name in _REGISTRIES:
        vars(module)[name] = OrderedDict(
            (key, hook if _is_torchs(hook) else functools.partial(run, key, hook))
            for key, hook in before[name].items()
        )
    if forward is not None:
        vars(module)["forward"] = forward
        vars(module).update({name: OrderedDict() for name in _BACKWARD})
    try:
        yield
    finally:
        for name in (*_REGISTRIES, *_BACKWARD):
            vars(module)[name] = before[name]
        if forward is not None:
            vars(module).pop("forward")
        if "forward" in before:
            vars(module)["forward"] = before["forward"]


def replaced(result: Any, given: tuple[Any, ...]) -> bool:
    """Whether a hook returned something else than what it was given."""
    if result is None:
        return False
    known = {id(leaf) for _, leaf in leaves(given) if isinstance(leaf, Tensor)}
    returned = [leaf for _, leaf in leaves(result) if isinstance(leaf, Tensor)]
    # a module with several results may get them in another order
    return not returned or any(id(t) not in known for t in returned) or not _is_whole(result, given)


def _is_whole(result: Any, given: tuple[Any, ...]) -> bool:
    ids = [id(leaf) for _, leaf in leaves(result)]
    return any(
        ids == [id(leaf) for _, leaf in leaves(part)] for part in (given[-1], given[0], given)
    )


def remove(module: nn.Module, key: int) -> None:
    """Take a hook off a module."""
    for name in (*_REGISTRIES, *_FLAGS):
        vars(module)[name].pop(key, None)


def name_of(hook: Any) -> str:
    """What a hook is called, for people."""
    return str(getattr(hook, "__qualname__", type(hook).__name__))
