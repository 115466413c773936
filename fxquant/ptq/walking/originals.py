"""The float values of parameters that a technique has changed, kept beside the module.

Techniques compare with the float model. One that rounds a weight takes that model away from those
that come after it, so the values before the first change are kept with the module. They go with
copies of it, and are no part of its state: a checkpoint holds what the simulation computes with.
What anything else than a technique writes into a parameter makes it the float value again.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fxquant.nn import QuantizationMixin
from fxquant.nn.live_norm import live_norm_of
from fxquant.quantization.digest import tensor_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# module attribute: name -> (float value, digest of what a technique put in its place)
_KEPT = QuantizationMixin.FLOAT_VALUES


def float_value(module: nn.Module, name: str) -> Tensor:
    """What a parameter was before any technique changed it.

    Raises:
        AttributeError: the module has no such parameter.
    """
    now: Tensor = getattr(module, name).detach()
    kept = module.__dict__.get(_KEPT, {}).get(name)
    if kept is None or kept[1] != tensor_digest(now):
        return now
    found: Tensor = kept[0].to(now.device)
    return found


def float_values(module: nn.Module) -> dict[str, Tensor]:
    """Float values of the parameters that techniques have changed, by name."""
    kept = module.__dict__.get(_KEPT, {})
    return {n: float_value(module, n) for n in kept if module._parameters.get(n) is not None}


def float_module(module: QuantizationMixin) -> nn.Module:
    """The module without quantizers and with its float values; what was not changed is shared."""
    plain = module.get_original_module()
    if live_norm_of(module) is not None:  # what it computes is not its class's own forward
        plain = QuantizationMixin.from_module(plain)
    for name, value in float_values(module).items():
        if plain._parameters.get(name) is not None:  # a bias that was added may be gone again
            plain._parameters[name] = nn.Parameter(value, requires_grad=False)
    names = vars(plain).get("_flat_weights_names")
    if names is not None:  # recurrent modules keep their weights in a list beside the names
        vars(plain)["_flat_weights"] = [plain._parameters.get(name) for name in names]
    return plain


def changed_parameters(model: nn.Module) -> list[str]:
    """Paths of parameters whose float values are kept, as techniques have changed them."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name, value in float_values(module).items()
        if not torch.equal(value, getattr(module, name).detach())
    ]


@contextmanager
def changing(module: nn.Module, *names: str, also: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Keep the float values of parameters that are changed inside.

    Args:
        module: whose parameters they are.
        names: of the parameters.
        also: further modules that have some of them.

    Example:
        >>> from fxquant.nn import quantized_class
        >>> layer = quantized_class(nn.Linear)(2, 1)
        >>> with torch.no_grad(), changing(layer, "weight"):
        ...     before = layer.weight.clone()
        ...     _ = layer.weight.zero_()
        >>> torch.equal(float_value(layer, "weight"), before)
        True
    """
    there = [
        (owner, name, parameter)
        for owner in (module, *also)
        for name in names
        if (parameter := owner._parameters.get(name)) is not None
    ]
    # one copy of a parameter that several modules have
    firsts = {id(parameter): (owner, name) for owner, name, parameter in reversed(there)}
    before = {key: float_value(*first).clone() for key, first in firsts.items()}
    yield
    after = {key: tensor_digest(getattr(*first).detach()) for key, first in firsts.items()}
    for owner, name, parameter in there:
        kept = owner.__dict__.setdefault(_KEPT, {})
        kept[name] = before[id(parameter)], after[id(parameter)]
