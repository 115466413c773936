"""Replace parameters that are computed anew in every call by their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxquant.graph.pass_infra import Fact, Pass
from fxquant.graph.pass_log import Gone
from fxquant.quantization.digest import tensor_digest

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class FoldParametrizations(Pass):
    """A weight that a norm of it, a parametrization or a mask of pruning computes is a parameter.

    Before::

        %conv = conv2d[features.0](%x)    # weight computed from `original0` and `original1`

    After::

        %conv = conv2d[features.0](%x)    # weight a parameter

    What is quantized is the weight that the layer multiplies with, and that has to be a parameter
    to have a grid of its own. The prepared model keeps its parametrizations.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_MODULES})

    def run(self, rw: Rewriter) -> None:
        """Fold in every module that is called."""
        for node in rw.nodes:
            module = rw.module(node)
            if module is not None and rw.op(node) is not None and _computes_weights(module):
                rw.edit(_fold, module)
                path = str(node.target)
                rw.gone[f"{path}.parametrizations"] = Gone("was folded into the weights of", path)
                rw.explain(node, "its parametrized weight was folded into a parameter")


def _computes_weights(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) or bool(_hooks(module))


_Hook: TypeAlias = WeightNorm | SpectralNorm | BasePruningMethod


def _hooks(module: nn.Module) -> dict[int, _Hook]:
    """The older weight and spectral norm, and pruning: hooks that run before each call."""
    hooks = module._forward_pre_hooks.items()
    return {k: hook for k, hook in hooks if isinstance(hook, _Hook)}


# module attribute: what computed its weights, by their names
_FOLDED = "_folded_parametrizations"
# one rounding in each direction, and two in a norm
_AGAIN = 8 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class _Folded:
    """A parametrization that was folded.

    Attributes:
        parts: what it consists of, in the order in which it is computed.
        originals: the tensors that it is computed from.
        digest: of the weight that it gave.
    """

    parts: tuple[nn.Module, ...]
    originals: dict[str, Tensor]
    digest: str


def _fold(module: nn.Module) -> None:
    """Make computed parameters plain ones."""
    was = module.training
    module.training = False  # spectral norm iterates while training
    try:
        if parametrize.is_parametrized(module):
            _own_class(module)
            folded = module.__dict__.setdefault(_FOLDED, {})
            for name, parts in list(module.parametrizations.items()):  # type: ignore[operator, union-attr]
                originals = {n: p.detach() for n, p in parts._parameters.items()}
                parametrize.remove_parametrizations(module, name)
                digest = tensor_digest(module.get_parameter(name))
                folded[name] = _Folded(tuple(parts), originals, digest)
        for key, hook in _hooks(module).items():
            hook.remove(module)
            del module._forward_pre_hooks[key]
    finally:
        module.training = was


@torch.no_grad()
def unfold(module: nn.Module) -> None:
    """Let a module compute its weights again, where its parametrizations can give those it has.

    A norm of weights gives any weight; a spectral norm and what has no inverse give the one that
    was folded, and a module with another one keeps it as a parameter.
    """
    folded: dict[str, _Folded] = module.__dict__.pop(_FOLDED, {})
    for name, kept in folded.items():
        weight = module._parameters.get(name)
        if weight is None:
            continue
        same = tensor_digest(weight) == kept.digest
        if not same and not all(hasattr(part, "right_inverse") for part in kept.parts):
            continue
        was = [part.training for part in kept.parts]
        for part in kept.parts:
            part.training = False
            parametrize.register_parametrization(module, name, part, unsafe=True)
        made: nn.Module = module.parametrizations[name]  # type: ignore[index, assignment]
        if same:
            for key, tensor in kept.originals.items():
                made.get_parameter(key).copy_(tensor)
        for part, mode in zip(kept.parts, was, strict=True):
            part.training = mode
        again: Tensor = made.eval()()
        made.train(module.training)
        if not same and not torch.allclose(again, weight, rtol=_AGAIN, atol=0.0):
            _own_class(module)
            parametrize.remove_parametrizations(module, name)
            module.register_parameter(name, weight)


def _own_class(module: nn.Module) -> None:
    """A class of the module's own: torch takes properties off the class, which copies share."""
    shared = type(module)
    space = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, space)
