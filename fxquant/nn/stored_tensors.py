"""Parameters and buffers of a graph: which of them it computes with, and where they are registered.

A network may hold a tensor under several names. Functions that are called with a parameter become
modules that hold it, too; where the network registered it, nothing computes with it then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping


def tensors_read(gm: fx.GraphModule, nodes: Iterable[fx.Node] | None = None) -> Iterator[Any]:
    """Parameters and buffers that nodes of a graph, or all, compute with, one after the other."""
    for node in gm.graph.nodes if nodes is None else nodes:
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            yield getattr(gm.get_submodule(path), name, None)
        elif node.op == "call_module":
            for module in gm.get_submodule(str(node.target)).modules():
                yield from (*module._parameters.values(), *module._buffers.values())


def replace_stored(root: nn.Module, module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module another tensor; wherever the one before is registered, it is the new one.

    Args:
        root: the network.
        module: a part of it.
        name: of the parameter or buffer, which stays what it is; a new one becomes a parameter.
        value: the tensor.
    """
    old: Tensor | None = module._parameters.get(name)
    old = module._buffers.get(name) if old is None else old
    if old is None:
        module.register_parameter(name, nn.Parameter(value, value.requires_grad))
        return
    made = value
    if isinstance(old, nn.Parameter):
        made = value if isinstance(value, nn.Parameter) else nn.Parameter(value, old.requires_grad)
    for owner in {id(m): m for m in (module, *root.modules())}.values():
        registries: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
        for tensors in registries:
            for key, found in tensors.items():
                if found is old:
                    tensors[key] = made


def other_names(root: nn.Module, own: Collection[str]) -> dict[str, str]:
    """Names that a tensor has beside the one that the network gave it, and that one.

    Args:
        root: the network, or a graph of it.
        own: names of parameters and buffers that the network gave.
    """
    stored = [*_kept(root)]
    names: dict[int, str] = {}
    for name, tensor in stored:
        if name in own:
            names.setdefault(id(tensor), name)
    return {n: names[id(t)] for n, t in stored if n not in own and id(t) in names}


def _kept(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a state dict has, by every name."""
    for path, module in root.named_modules(remove_duplicate=False):
        passing = module._non_persistent_buffers_set
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in passing:
                yield f"{path}.{name}".lstrip("."), tensor


def keep_own_names(root: nn.Module, own: Collection[str]) -> None:
    """Let the state dict of a module, saved or loaded, have tensors under the network's names only.

    Args:
        root: a graph of a network.
        own: names of parameters and buffers that the network gave.
    """
    hook = _OwnNames(frozenset(own))
    root.register_state_dict_post_hook(hook)
    root.register_load_state_dict_pre_hook(_Filled(hook.own))


@dataclass
class _OwnNames:
    """Leaves other names of the same tensors out of a state dict."""

    own: frozenset[str]

    def __call__(
        self, root: nn.Module, state: dict[str, Any], prefix: str, _: Mapping[str, Any]
    ) -> None:
        for other in other_names(root, self.own):
            state.pop(prefix + other, None)


@dataclass
class _Filled:
    """Takes what a state dict has no tensor for from the network's name of the same tensor."""

    own: frozenset[str]

    def __call__(self, root: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for other, name in other_names(root, self.own).items():
            if prefix + name in state:
                state.setdefault(prefix + other, state[prefix + name])
