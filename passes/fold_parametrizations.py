"""Replace parameters that are computed anew in every call by their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxquant.graph.pass_infra import Fact, Pass
from fxquant.graph.rewriter import Gone

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class FoldParametrizations(Pass):
    """A weight that weight norm, spectral norm or a parametrization computes becomes a parameter.

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
            if module is not None and rw.op(node) is not None and _fold(module):
                path = str(node.target)
                rw.gone[f"{path}.parametrizations"] = Gone("was folded into the weights of", path)
                rw.explain(node, "its parametrized weight was folded into a parameter")


def _fold(module: nn.Module) -> bool:
    """Make computed parameters plain ones; tells whether there were any."""
    was = module.training
    module.training = False  # spectral norm iterates while training
    try:
        names = _fold_new(module) + _fold_hooks(module)
    finally:
        module.training = was
    return bool(names)


def _fold_new(module: nn.Module) -> list[str]:
    if not parametrize.is_parametrized(module):
        return []
    _own_class(module)
    names = list(module.parametrizations)  # type: ignore[arg-type]
    for name in names:
        parametrize.remove_parametrizations(module, name)
    return names


def _own_class(module: nn.Module) -> None:
    """A class of the module's own: torch takes properties off the class, which copies share."""
    shared = type(module)
    space = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, space)


def _fold_hooks(module: nn.Module) -> list[str]:
    """The older weight and spectral norm, which are hooks that run before each call."""
    names = []
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, WeightNorm | SpectralNorm):
            hook.remove(module)
            del module._forward_pre_hooks[key]
            names.append(hook.name)
    return names
