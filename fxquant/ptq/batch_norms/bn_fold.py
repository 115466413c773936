"""Batch-norm folding as a function on models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxquant.errors import ConfigError
from fxquant.graph.rewriter import Rewriter
from fxquant.nn.dense import adopt
from fxquant.nn.stored_tensors import replace_stored
from fxquant.passes import LinearEinsums, LinearProducts
from fxquant.passes.fold_batch_norms import Folded, fold_batch_norms
from fxquant.prepare import is_prepared, prepare_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class FoldedBatchNorms(list[tuple[nn.Module, nn.Module]]):
    """Pairs of (layer, batch norm); `str()` says it for people.

    Attributes:
        paths: their paths, pair by pair.
        left: why other batch norms are as they were, by path.
        direct: by path of a layer, the batch norm that read its output as it was.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[nn.Module, nn.Module]],
        folds: Iterable[Folded],
        left: dict[str, str],
    ) -> None:
        super().__init__(pairs)
        known = list(folds)
        self.paths, self.left = tuple((f.layer, f.norm) for f in known), dict(left)
        self.direct = {
            fold.layer: norm for fold, (_, norm) in zip(known, self, strict=True) if fold.direct
        }

    def __str__(self) -> str:
        lines = [f"{norm}: folded into {layer}" for layer, norm in self.paths]
        return "\n".join([*lines, *(f"{p}: left as it was, {r}" for p, r in self.left.items())])


def fold_all_batch_norms(
    model: nn.Module,
    input_shapes: Sequence[Any] | None = None,
    dummy_input: Any = None,
) -> FoldedBatchNorms:
    """Fold every batch norm into the layer before it, or else into those behind it, in place.

    A batch norm is folded into the layer before it if nothing else reads the layer's output; into
    the layers behind it if nothing else reads the batch norm and none of them pads with zeros. The
    layers' weights must belong to them alone. An `nn.Identity` takes its place. A product with a
    parameter is a layer; in a network that is not prepared, it needs a bias that is a parameter.

    Args:
        model: a network in evaluation; it is changed.
        input_shapes: shape of the input, or a sequence of shapes, if there is no dummy input.
        dummy_input: a tensor, a tuple of positional inputs or a dict of keyword inputs; not needed
            for a prepared model.

    Returns:
        Pairs of (layer, batch norm) that were folded, in the order of the graph; `left` tells of
        every other batch norm why it was not.

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
        gm = model
    else:
        given = example_inputs(model, input_shapes) if dummy_input is None else dummy_input
        gm = prepare_model(model, given)
    with_layers(gm)
    norms = dict(gm.named_modules(remove_duplicate=False))
    targets = {n.name: str(n.target) for n in gm.graph.nodes if n.op == "call_module"}
    rw = Rewriter(gm, "fold_all_batch_norms")
    folds = fold_batch_norms(rw)
    rw.finish()
    left = {targets.get(skip.node, skip.node): skip.reason for skip in rw.skips}
    if gm is model:
        return FoldedBatchNorms(
            [(gm.get_submodule(f.layer), norms[f.norm]) for f in folds], folds, left
        )
    mine = dict(model.named_modules(remove_duplicate=False))
    left |= _not_mine(model, gm, norms, [(f.layer, f.norm) for f in folds])
    folds = [f for f in folds if f.norm not in left]
    for layer in dict.fromkeys(f.layer for f in folds):
        _take_over(model, gm, layer)
    for fold in folds:
        owner, _, name = fold.norm.rpartition(".")
        model.get_submodule(owner)._modules[name] = nn.Identity()
    layers = [mine.get(f.layer) or gm.get_submodule(f.layer) for f in folds]
    pairs = [(layer, mine[f.norm]) for layer, f in zip(layers, folds, strict=True)]
    return FoldedBatchNorms(pairs, folds, left)


def with_layers(gm: fx.GraphModule) -> fx.GraphModule:
    """A prepared graph in which products with a parameter are linear layers, as in a simulation."""
    for step in (LinearEinsums(), LinearProducts()):
        step(gm)
    return gm


_PREPARE = "fold in the result of prepare_model"


def _not_mine(
    model: nn.Module, gm: fx.GraphModule, norms: dict[str, nn.Module], paths: list[tuple[str, str]]
) -> dict[str, str]:
    """Why folds of a prepared copy cannot be done in the user's model, by batch norm."""
    mine = dict(model.named_modules(remove_duplicate=False))
    left: dict[str, str] = {}
    for layer, norm in paths:
        mean = getattr(norms[norm], "running_mean", None)
        if sum(getattr(m, "running_mean", None) is mean for m in norms.values()) > 1:
            left[norm] = f"it is called more than once: {_PREPARE}"
        elif norm not in mine:
            left[norm] = f"it is a module of the prepared graph only: {_PREPARE}"
        elif layer not in mine and None in _homes(model, gm, layer).values():
            left[norm] = f"{layer} is a layer of the prepared graph only: {_PREPARE}"
    known = -1
    while known < len(left):  # a layer has the parameters of all its folds or of none
        known = len(left)
        taken = {a: b for a, b in paths if b in left}
        left |= {
            b: f"{a} would have to take in {taken[a]}, too"
            for a, b in paths
            if a in taken and b not in left
        }
    return left


def _homes(
    model: nn.Module, gm: fx.GraphModule, layer: str
) -> dict[str, tuple[nn.Module, str] | None]:
    """Where the user's model has the parameters of a layer of its prepared copy, by their names."""
    own = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, tuple[nn.Module, str] | None] = {}
    for name, value in gm.get_submodule(layer).named_parameters(recurse=False):
        same = [p for p, v in gm.named_parameters(remove_duplicate=False) if v is value]
        places = [(own[path], last) for path, _, last in (p.rpartition(".") for p in same)
                  if path in own and last in own[path]._parameters]  # fmt: skip
        found[name] = next(iter(places), None)
    return found


def _take_over(model: nn.Module, gm: fx.GraphModule, layer: str) -> None:
    """Give a model the parameters of a layer that was folded in its prepared copy."""
    folded, mine = gm.get_submodule(layer), dict(model.named_modules(remove_duplicate=False))
    for name, home in _homes(model, gm, layer).items():
        value = folded.get_parameter(name)
        fresh = nn.Parameter(value.detach().clone(), value.requires_grad)
        owner, own = home or (mine[layer], name)
        replace_stored(model, owner, own, fresh)
        if layer not in mine:  # what is returned holds the very parameters of the model
            adopt(folded, **{name: fresh})


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
