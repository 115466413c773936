"""The graph module that recording returns, and the fresh copy of the user's model beneath it.

``fx.GraphModule`` keeps only what the graph mentions, makes every buffer persistent and forgets
the classes of containers. ``RecordedModule`` re-uses the copy's own dictionaries, so that paths,
classes, ``state_dict`` keys and their order stay as the user wrote them, also after a deep copy.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, fx, nn

from fxquant.errors import CheckpointError, TraceError
from fxquant.graph.model_copy import copy_plain, deep_copy, prepare_memo
from fxquant.graph.python_code import PathCodeGen
from fxquant.graph.python_state import holds_nothing, version_of
from fxquant.graph.pytree import modules_of, tensors_of

#: tensors by identity, each with its version when its values were known
Known: TypeAlias = Mapping[int, tuple[Tensor, int | None]]

_HOLDERS = ("_parameters", "_buffers", "_modules")
_CONTAINERS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


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
        if self.name in ("code", "to_folder") and isinstance(module, RecordedModule):
            module.make_code()
        return inherited if module is None else inherited.__get__(module, owner)


class _Unmade:
    """`forward` of a graph module whose code is made when somebody asks for it."""

    def __init__(self, module: RecordedModule) -> None:
        self.module = weakref.ref(module)

    def __get__(self, module: RecordedModule | None, owner: type | None = None) -> Any:
        mine = self.module()
        if mine is None:  # its class, which is its own, outlived it
            return fx.GraphModule.forward
        mine.make_code()
        return (module or type(mine)).forward


#: in `meta`: names of tensors that weights were computed from, and that nothing reads any more
FOLDED = "fxquant_folded"


class RecordedModule(fx.GraphModule):
    """A graph over the modules, parameters and buffers of a model.

    A model whose class overrides `train()`, to keep parts frozen, goes on being asked. The code of
    a graph that was just built, copied or rewritten is made at its first use: most graphs are
    rewritten before, and many are never run.
    """

    code = _Yielding()
    print_readable = _Yielding()
    to_folder = _Yielding()
    add_submodule = _Yielding()
    delete_submodule = _Yielding()
    delete_all_unused_submodules = _Yielding()

    # in a tuple, so that it does not count as a part
    _model: tuple[nn.Module, ...] = ()

    def __init__(
        self, root: nn.Module, graph: fx.Graph, class_name: str = "RecordedModule"
    ) -> None:
        graph.set_codegen(PathCodeGen())
        self._build(root, graph, class_name)
        adopt(self, root)
        if _has_own_train(root):
            self._model = (root,)

    def _build(self, root: nn.Module, graph: fx.Graph, class_name: str = "GraphModule") -> None:
        """As torch.fx does, which would also make the code and copy all paths of the graph."""
        super().__init__(nn.Module(), fx.Graph(), class_name)
        self._graph = graph
        graph.owning_module = self
        for node in graph.find_nodes(op="get_attr"):
            if node.target in vars(root):  # neither tensor nor module
                vars(self)[node.target] = vars(root)[node.target]
        self.make_code_later()

    def make_code_later(self) -> None:
        """Say that the graph was changed; what `recompile` does is done at the first use."""
        vars(self).pop("_code", None)
        kind: Any = type(self)  # every graph module has a class of its own
        kind.forward = _Unmade(self)

    def make_code(self) -> None:
        """Make the code if it was put off."""
        if isinstance(vars(type(self)).get("forward"), _Unmade):
            self.recompile()

    def __reduce__(self) -> Any:
        self.make_code()  # torch.fx saves the code
        return super().__reduce__()

    def __reduce_package__(self, exporter: Any) -> Any:
        self.make_code()
        return super().__reduce_package__(exporter)

    def get_submodule(self, target: str) -> nn.Module:
        """The module at a path, without a look at anything but modules on the way."""
        found: nn.Module | None = self
        for name in target.split(".") if target else ():
            found = found._modules.get(name) if found is not None else None
        return super().get_submodule(target) if found is None else found

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Paths and modules; see `modules_of`."""
        if memo is not None or prefix:
            return iter(super().named_modules(memo, prefix, remove_duplicate))
        return iter(modules_of(self, every_path=not remove_duplicate))

    def train(self, mode: bool = True) -> RecordedModule:
        """Set the training flags as the model does."""
        if not self._model:
            super().train(mode)
            return self
        self._model[0].train(mode)
        self.training = self._model[0].training
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **options: Any
    ) -> None:
        """As torch does, but for what weights were computed from: that would change nothing."""
        for name in sorted(self.meta.get(FOLDED, ())):
            given = state_dict.get(prefix + name)
            owner, _, last = name.rpartition(".")
            own = getattr(self.get_submodule(owner), last)
            if not isinstance(given, Tensor) or given.shape != own.shape:
                continue  # torch tells
            if not torch.equal(given.to(own.device, own.dtype), own):
                what = f"{name!r} has other values, but weights were computed from it before"
                fix = "load the state dict into the network, and simulate that"
                raise CheckpointError("FXQ625", what, fix=fix)
        super()._load_from_state_dict(state_dict, prefix, *rest, **options)

    def _apply(self, fn: Any, recurse: bool = True) -> RecordedModule:
        """Move or cast; tensors that the graph creates follow the model to its new device."""
        before = _device(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = _device(self)
        if before is not None and before != after:
            _move_literals(self, before, after)
        return self

    def _deepcopy_init(self) -> Any:
        return RecordedModule._build

    def __deepcopy__(self, memo: dict[int, Any]) -> RecordedModule:
        copy_plain([vars(self)[name] for name in _CONTAINERS], memo)
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


def recompile_later(gm: fx.GraphModule) -> None:
    """Say that a graph was changed; its code is made at its next use, where that can be known."""
    if isinstance(gm, RecordedModule):
        gm.make_code_later()
    else:
        gm.recompile()


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
    """A copy over the memory of the parameters and buffers: a run of it leaves all else as it was.

    What a run writes into that memory is for a `KeptState` to put back; tensors that the run
    resizes, freezes or points elsewhere are the copy's own.
    """
    aliases: dict[int, Any] = {}
    for named in tensors_of(model):
        aliases |= {id(tensor): _alias(tensor) for tensor in named.values()}
    copied: nn.Module = deep_copy(model, known=aliases)
    return copied


def _alias(tensor: Tensor) -> Tensor:
    """Another tensor with the same memory; classes of the author's are shared as they are."""
    made: Tensor
    if type(tensor) is nn.Parameter:
        made = nn.Parameter(tensor.detach(), tensor.requires_grad)
    elif type(tensor) is Tensor and tensor.grad_fn is None:
        made = tensor.detach().requires_grad_(tensor.requires_grad)
    else:
        return tensor
    vars(made).update(vars(tensor))
    return made


def _empty_caches(model: nn.Module) -> None:
    """Let modules throw away tensors that they computed from parameters in an earlier run.

    Such a cache (LeViT keeps one of its attention biases) would hide the parameter. By
    convention ``train()`` empties it, so that is called where a module overrides it.
    """
    for _, module in modules_of(model):
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


def restore(copied: nn.Module, model: nn.Module, before: list[tuple[str, Tensor]]) -> Known:
    """Undo what the run wrote to the copy's parameters and buffers.

    Args:
        copied: the copy that ran.
        model: the model it was copied from.
        before: name and tensor of each parameter and buffer of the copy before the run.

    Returns:
        The copy's tensors, which are equal to the model's now, with their versions, by identity.
    """
    parameters, buffers = tensors_of(model)
    holders = dict(modules_of(copied, every_path=True))
    for name, tensor in before:
        owner, _, leaf = name.rpartition(".")
        kind: Any = holders[owner]._parameters if name in parameters else holders[owner]._buffers
        # the dictionaries of scripted modules are read-only views
        if isinstance(kind, dict) and kind.get(leaf) is not tensor:
            kind[leaf] = tensor
        _rewind(tensor, parameters[name] if name in parameters else buffers[name])
    seen: set[int] = set()
    for module in holders.values():
        for name, value in list(vars(module).items()):
            if not holds_nothing(value) and name not in _CONTAINERS:
                vars(module)[name] = _without_history(value, seen)
    return {id(tensor): (tensor, version_of(tensor)) for _, tensor in before}


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


def _rewind(tensor: Tensor, original: Tensor) -> None:
    with torch.no_grad():
        if (tensor.shape, tensor.dtype) != (original.shape, original.dtype):
            tensor.data = original.detach().clone()
        # not by version: batch norms and writes through .data do not raise it
        elif not torch.equal(tensor, original):
            tensor.copy_(original)
    if tensor.is_leaf and tensor.requires_grad != original.requires_grad:
        tensor.requires_grad_(original.requires_grad)


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
