"""Transformations of float models: prepared ones in place, others through a prepared copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxquant.errors import ConfigError
from fxquant.nn import QuantizationMixin
from fxquant.prepare import is_prepared, prepare_model
from fxquant.ptq.batch_norms.bn_fold import (
    FoldedBatchNorms,
    example_inputs,
    fold_all_batch_norms,
    with_layers,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def folded_graph(
    model: nn.Module, input_shapes: Sequence[Any] | None, dummy_input: Any
) -> tuple[fx.GraphModule, FoldedBatchNorms]:
    """The prepared graph of a float model, batch norms folded; the model itself if it is prepared.

    Products with a parameter are linear layers in it. With it comes what was folded.

    Raises:
        ConfigError: FXQ292, the model is a simulation.
    """
    require_float(model)
    if is_prepared(model) and isinstance(model, fx.GraphModule):
        return model, fold_all_batch_norms(model)
    given = example_inputs(model, input_shapes) if dummy_input is None else dummy_input
    folded = fold_all_batch_norms(model, dummy_input=given)
    return with_layers(prepare_model(model, given)), folded


def require_float(model: nn.Module) -> None:
    """Refuse the model of a simulation.

    Raises:
        ConfigError: FXQ292.
    """
    if any(isinstance(m, QuantizationMixin) for m in model.modules()):
        what = "the model is quantized: its weights have ranges already"
        fix = "transform the float model first, then build the simulation"
        raise ConfigError("FXQ292", what, fix=fix)


@torch.no_grad()
def write_back(gm: fx.GraphModule, model: nn.Module) -> None:
    """Give a model the parameters of its prepared copy, by name; also biases that are new.

    What a layer of the copy shares with its network, a bias that functions add, is nothing new.
    """
    if gm is model:
        return
    own = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules(remove_duplicate=False))
    given = dict(gm.named_parameters(remove_duplicate=False))
    known = {id(found) for name, found in given.items() if name in own}
    for name, found in given.items():
        owner, _, last = name.rpartition(".")
        if name in own:
            own[name].copy_(found)
        elif id(found) in known:
            continue
        elif owner in modules and last in modules[owner]._parameters:
            fresh = nn.Parameter(found.detach().clone(), found.requires_grad)
            modules[owner].register_parameter(last, fresh)
