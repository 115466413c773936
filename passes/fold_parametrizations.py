"""Replace parameters that are computed anew in every call by their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxquant.graph.pass_infra import Fact, Pass
from fxquant.graph.pass_log import Gone

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


def _fold(module: nn.Module) -> None:
    """Make computed parameters plain ones."""
    was = module.training
    module.training = False  # spectral norm iterates while training
    try:
        if parametrize.is_parametrized(module):
            _own_class(module)
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
        for key, hook in _hooks(module).items():
            hook.remove(module)
            del module._forward_pre_hooks[key]
    finally:
        module.training = was


def _own_class(module: nn.Module) -> None:
    """A class of the module's own: torch takes properties off the class, which copies share."""
    shared = type(module)
    space = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, space)
