"""The graph module that recording returns, and the fresh copy of the user's model beneath it.

``fx.GraphModule`` keeps only what the graph mentions, makes every buffer persistent and forgets
the classes of containers. ``RecordedModule`` re-uses the copy's own dictionaries, so that paths,
classes, ``state_dict`` keys and their order stay as the user wrote them, also after a deep copy.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from fxquant.errors import TraceError
from fxquant.graph.model_copy import deep_copy, prepare_memo
from fxquant.graph.python_code import PathCodeGen

_HOLDERS = ("_parameters", "_buffers", "_modules")
_CONTAINERS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_BARE = frozenset((bool, int, float, str, type(None)))
_COLLECTIONS = frozenset((list, tuple, dict, OrderedDict, set))


class _Yielding:
    """What every graph module has, unless the model has a part of that name."""

    name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: fx.GraphModule | None, owner: type | None = None) -> Any:
        for held in (vars(module)[n] for n in _HOLDERS if module is not None):
            if self.name in held:
                return held[self.name]
        if module is not None and "_graph" not in vars(module):
            raise AttributeError(self.name)  # torch.fx is about to register such a part
        inherited = getattr(fx.GraphModule, self.name)
        return inherited if module is None else inherited.__get__(module, owner)


class RecordedModule(fx.GraphModule):
    """A graph over the modules, parameters and buffers of a model.

    A model whose class overrides `train()`, to keep parts frozen, goes on being asked.
    """

    code = _Yielding()
    print_readable = _Yielding()
    to_folder = _Yielding()
    add_submodule = _Yielding()
    delete_submodule = _Yielding()
    delete_all_unused_submodules = _Yielding()

    # in a tuple, so that it does not count as a part
    _model: tuple[nn.Module, ...] = ()

    def __init__(self, root: Any, graph: fx.Graph, class_name: str = "RecordedModule") -> None:
        graph.set_codegen(PathCodeGen())
        super().__init__(root, graph, class_name)
        if isinstance(root, nn.Module):
            adopt(self, root)
        if _has_own_train(root):
            self._model = (root,)

    def train(self, mode: bool = True) -> RecordedModule:
        """Set the training flags as the model does."""
        if not self._model:
            super().train(mode)
            return self
        self._model[0].train(mode)
        self.training = self._model[0].training
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> RecordedModule:
        """Move or cast; tensors that the graph creates follow the model to its new device."""
        before = _device(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = _device(self)
        if before is not None and before != after:
            _move_literals(self, before, after)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RecordedModule:
        finish = prepare_memo(vars(self).values(), memo)
        copied = super().__deepcopy__(memo)
        if not isinstance(copied, RecordedModule):
            msg = "torch.fx copied a recorded module as something else"
            raise TypeError(msg)
        for name in _CONTAINERS:
            # the memo holds the copies that torch.fx has just made
            copied.__dict__[name] = copy.deepcopy(self.__dict__[name], memo)
        copied._model = copy.deepcopy(self._model, memo)
        copied.training = self.training
        finish()
        return copied


#: parts of a model may have these names of `fx.GraphModule`
YIELDING = frozenset(n for n, v in vars(RecordedModule).items() if isinstance(v, _Yielding))


def _device(module: nn.Module) -> torch.device | None:
    return next((t.device for t in (*module.parameters(), *module.buffers())), None)


def _move_literals(module: fx.GraphModule, before: torch.device, after: Any) -> None:
    """``x.new_zeros(n, device=x.device)`` was recorded with the device of then."""
    move = lambda value: after if value == before else value  # noqa: E731
    for node in module.graph.nodes:
        given = (node.args, node.kwargs)
        moved = fx.node.map_aggregate(given, move)
        if moved != given:
            node.args, node.kwargs = moved
    module.recompile()


def _has_own_train(root: Any) -> bool:
    method = getattr(root, "train", None)
    return isinstance(root, nn.Module) and getattr(method, "__func__", None) is not nn.Module.train


def adopt(module: nn.Module, root: nn.Module) -> None:
    """Make a module use the very dictionaries of another one."""
    for name in _CONTAINERS:
        module.__dict__[name] = root.__dict__[name]
    module.training = root.training


def fresh_copy(model: nn.Module) -> nn.Module:
    """A deep copy to run: the user's model stays untouched, tying and hooks survive.

    Raises:
        TraceError: FXQ115, a module of the author's cannot be copied.
    """
    try:
        copied: nn.Module = deep_copy(model)
    except Exception as error:  # a class of the author's may raise anything when it is copied
        raise TraceError(
            "FXQ115",
            f"the model cannot be copied: {type(error).__name__}: {error}",
            at=type(model).__name__,
            fix="copy.deepcopy(model) must work; a recording runs on a copy",
        ) from error
    _empty_caches(copied)
    return copied


def shadow(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters and buffers: running it leaves all else as it was."""
    copied: nn.Module = deep_copy(model, share=[*model.parameters(), *model.buffers()])
    return copied


def _empty_caches(model: nn.Module) -> None:
    """Let modules throw away tensors that they computed from parameters in an earlier run.

    Such a cache (LeViT keeps one of its attention biases) would hide the parameter. By
    convention ``train()`` empties it, so that is called where a module overrides it.
    """
    for module in model.modules():
        own = type(module).train is not nn.Module.train
        if not own or not any(_is_cache(v) for v in vars(module).values()):
            continue
        flags = [(m, m.training) for m in module.modules()]
        module.train(True)
        if not flags[0][1]:  # it may also fill there what evaluation needs
            module.train(False)
        for part, flag in flags:
            part.training = flag


def _is_cache(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values())


def restore(copied: nn.Module, model: nn.Module, before: list[tuple[str, Tensor]]) -> None:
    """Undo what the run wrote to the copy's parameters and buffers.

    Args:
        copied: the copy that ran.
        model: the model it was copied from.
        before: name and tensor of each parameter and buffer of the copy before the run.
    """
    original = dict([*model.named_parameters(), *model.named_buffers()])
    holders = dict(copied.named_modules(remove_duplicate=False))
    for name, tensor in before:
        owner, _, leaf = name.rpartition(".")
        holder = holders[owner]
        kind: Any = holder._parameters if leaf in holder._parameters else holder._buffers
        # the dictionaries of scripted modules are read-only views
        if isinstance(kind, dict) and kind.get(leaf) is not tensor:
            kind[leaf] = tensor
        # not by version: batch norms and writes through .data do not raise it
        if not torch.equal(tensor, original[name]):
            _rewind(tensor, original[name])
    seen: set[int] = set()
    for module in copied.modules():
        for name, value in list(vars(module).items()):
            if not holds_nothing(value) and name not in _CONTAINERS:
                vars(module)[name] = _without_history(value, seen)


def holds_nothing(value: Any) -> bool:
    """Whether a value holds no tensor, by a look at its class: most attributes of modules do not.

    >>> holds_nothing({}), holds_nothing([0])
    (True, False)
    """
    return not value if type(value) in _COLLECTIONS else type(value) in _BARE


def _without_history(value: Any, seen: set[int]) -> Any:
    """What the run left in an attribute, without the graph that its gradients would flow through.

    Lists and dicts stay the same objects: hooks and other modules may hold them too.
    """
    if isinstance(value, Tensor):
        return value.detach() if value.grad_fn is not None else value
    if type(value) is tuple:
        return tuple(_without_history(part, seen) for part in value)
    if type(value) in (list, dict) and id(value) not in seen:
        seen.add(id(value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in list(items):
            value[key] = _without_history(part, seen)
    return value


@contextmanager
def state_kept(
    module: nn.Module, *, parameters: bool = True, known: Mapping[str, Tensor] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Put parameters and buffers back afterwards, values and identity.

    Args:
        module: whose state it is.
        parameters: whether parameters are kept too; a copy of them costs as much as a small run.
        known: what this yielded for another module; equal values are not copied again.

    Yields:
        The copies by name.
    """
    copies: dict[str, Tensor] = {}

    def keep(path: str, tensor: Tensor) -> Tensor:
        there = known.get(path) if known else None
        same = there is not None and _alike(there, tensor) and torch.equal(there, tensor)
        copies[path] = there if there is not None and same else tensor.detach().clone()
        return copies[path]

    with torch.no_grad():
        state: list[tuple[Any, str, Tensor, Tensor]] = [
            (holder, name, tensor, keep(f"{path}.{name}", tensor))
            for path, m in module.named_modules()
            for holder in ((m._parameters, m._buffers) if parameters else (m._buffers,))
            for name, tensor in holder.items()
            if tensor is not None
        ]
        attributes = [
            (vars(m), name, value, value.detach().clone())
            for m in module.modules()
            for name, value in vars(m).items()
            if not holds_nothing(value) and isinstance(value, Tensor)
        ]
        state += attributes
        try:
            yield copies
        finally:
            for holder, name, tensor, value in state:
                if isinstance(holder, dict):
                    holder[name] = tensor
                # not by version: batch norms and writes through .data do not raise it
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


def _rewind(tensor: Tensor, original: Tensor) -> None:
    with torch.no_grad():
        if tensor.shape == original.shape:
            tensor.copy_(original)
        else:
            tensor.data = original.detach().clone()


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device


M = TypeVar("M", bound=nn.Module)

# the dictionaries themselves are shared, not only the tensors in them: `.to(dtype)` replaces the
# buffers of a module, and copies must still have the same ones afterwards
_SHARED = ("_parameters", "_buffers", "_non_persistent_buffers_set")


def shared_copy(module: M) -> M:
    """A module that computes the same with the same parameters and buffers.

    Training flag, hooks (the same callables) and plain attributes are taken over; submodules are
    copied alike.
    """
    made: M = module.__new__(type(module))
    state: dict[str, Any] = {}
    for key, value in module.__dict__.items():
        copied = isinstance(value, dict | list | set) and key not in _SHARED
        state[key] = value.copy() if copied else value
    state["_modules"] = {k: m and shared_copy(m) for k, m in module._modules.items()}
    made.__dict__.update(state)
    return made
