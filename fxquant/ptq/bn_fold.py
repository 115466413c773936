"""Batch-norm folding as a function on models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxquant import ops
from fxquant.errors import ConfigError
from fxquant.graph.rewriter import Rewriter
from fxquant.nn.folded_norm import keep_norm
from fxquant.nn.norm_folding import folded
from fxquant.passes.fold_batch_norms import fold_batch_norms
from fxquant.prepare import is_prepared, prepare_model

if TYPE_CHECKING:
    from collections.abc import Sequence


def fold_all_batch_norms(
    model: nn.Module,
    input_shapes: Sequence[Any] | None = None,
    dummy_input: Any = None,
) -> list[tuple[nn.Module, nn.Module]]:
    """Fold every batch norm into the layer before it, in place.

    A batch norm is folded only if nothing else reads the layer's output and the layer's weight
    belongs to it alone; an `nn.Identity` takes its place.

    Args:
        model: a network in evaluation; it is changed.
        input_shapes: shape of the input, or a sequence of shapes, if there is no dummy input.
        dummy_input: a tensor, a tuple of positional inputs or a dict of keyword inputs; not needed
            for a prepared model.

    Returns:
        Pairs of (layer, batch norm) that were folded, in the order of the graph.

    Raises:
        ConfigError: FXQ212, neither input shapes nor a dummy input.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", equation 14.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
        >>> fold_all_batch_norms(net, (1, 3, 2, 2))[0][0] is net[0], net[1]
        (True, Identity())
    """
    if is_prepared(model) and isinstance(model, fx.GraphModule):
        norms = dict(model.named_modules(remove_duplicate=False))
        rw = Rewriter(model, "fold_all_batch_norms")
        pairs = fold_batch_norms(rw)
        rw.finish()
        return [(model.get_submodule(a), norms[b]) for a, b in pairs]
    if dummy_input is None:
        dummy_input = example_inputs(model, input_shapes)
    pairs = fold_batch_norms(Rewriter(prepare_model(model, dummy_input)))
    return [_fold(model, layer, norm) for layer, norm in pairs if _has(model, layer, norm)]


def _has(model: nn.Module, *paths: str) -> bool:
    known = dict(model.named_modules(remove_duplicate=False))
    return all(path in known for path in paths)


@torch.no_grad()
def _fold(model: nn.Module, layer_path: str, norm_path: str) -> tuple[nn.Module, nn.Module]:
    layer, norm = model.get_submodule(layer_path), model.get_submodule(norm_path)
    row = ops.row_for_module(layer)
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        grad = layer.get_parameter("weight").requires_grad
        for name, value in folded(layer, norm, (row.weight_axis if row else 0) or 0).items():
            setattr(layer, name, nn.Parameter(value, grad))
        keep_norm(layer, norm)
    owner, _, name = norm_path.rpartition(".")
    model.get_submodule(owner)._modules[name] = nn.Identity()
    return layer, norm


def example_inputs(model: nn.Module, shapes: Sequence[Any] | None) -> tuple[torch.Tensor, ...]:
    """Random inputs of these shapes, on the device of the model."""
    if not shapes:
        raise ConfigError(
            "FXQ212",
            "folding needs to run the model once",
            fix="pass dummy_input, or input_shapes such as (1, 3, 224, 224)",
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    many = shapes if isinstance(shapes[0], tuple | list) else [shapes]
    return tuple(torch.randn(tuple(shape), device=device) for shape in many)
