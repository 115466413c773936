"""Folding batch norms: `aimet_torch.batch_norm_fold`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxquant.aimet.model_preparer import recorded
from fxquant.errors import ConfigError
from fxquant.nn.norm_folding import folded, folded_behind
from fxquant.ptq.batch_norms import bn_fold, fold_to_scale

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fxquant.sim import QuantizationSimModel


def fold_all_batch_norms(
    model: nn.Module, input_shapes: Sequence[Any] | None = None, dummy_input: Any = None
) -> bn_fold.FoldedBatchNorms:
    """Fold every batch norm that can be; see `fxquant.fold_all_batch_norms`."""
    recorded(model, dummy_input, input_shapes)
    return bn_fold.fold_all_batch_norms(model, input_shapes, dummy_input)


fold_all_batch_norms_to_weight = fold_all_batch_norms


def fold_all_batch_norms_to_scale(
    sim: QuantizationSimModel, input_shapes: Sequence[Any] | None = None
) -> bn_fold.FoldedBatchNorms:
    """Fold batch norms into weights and their steps; see `fxquant.fold_all_batch_norms_to_scale`.

    Args:
        sim: the simulation, calibrated.
        input_shapes: not needed: a simulation has its inputs.
    """
    return fold_to_scale.fold_all_batch_norms_to_scale(sim)


def fold_given_batch_norms(model: nn.Module, layer_pairs: Iterable[tuple[Any, ...]]) -> None:
    """Fold batch norms that are named, each with its layer; an `nn.Identity` takes its place.

    Args:
        model: the float model in evaluation; it is changed.
        layer_pairs: (layer, batch norm behind it) or (batch norm, layer behind it).

    Raises:
        ConfigError: FXQ907, a pair is something else, or its modules are not of the model.
    """
    paths = {id(m): path for path, m in model.named_modules(remove_duplicate=False)}
    for first, second in layer_pairs:
        forward = isinstance(first, nn.modules.batchnorm._BatchNorm)
        norm, layer = (first, second) if forward else (second, first)
        if id(norm) not in paths or id(layer) not in paths:
            what = "a module of layer_pairs is not in the model"
            fix = "collect the pairs from the model that is folded"
            raise ConfigError("FXQ907", what, fix=fix)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not hasattr(layer, "weight"):
            kinds = f"{type(first).__name__} and {type(second).__name__}"
            fix = "pass (convolution or linear layer, batch norm) or the other way round"
            raise ConfigError("FXQ907", f"layer_pairs holds {kinds}", fix=fix)
        axis = int(isinstance(layer, nn.modules.conv._ConvTransposeNd))
        with torch.no_grad():
            if forward:
                values = folded_behind(layer, norm, axis, torch.arange(norm.num_features))
            else:
                values = folded(layer, norm, axis)
        for name, value in values.items():
            grad = layer.weight.requires_grad
            layer.register_parameter(name, nn.Parameter(value.detach().clone(), grad))
        owner, _, name = paths[id(norm)].rpartition(".")
        model.get_submodule(owner)._modules[name] = nn.Identity()
