"""What training moves: one row a quantizer, and the weights beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxquant.io.text_tables import table
from fxquant.nn.quantizer_places import quantizer_places
from fxquant.quantization.affine import AffineQuantizer, BiasQuantizeDequantize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from fxquant.quantization import QuantizerBase

LEARNED, FOLLOWS, FIXED, DERIVED = "learned", "follows the weight", "fixed", "input * weight"


@dataclass(frozen=True)
class Trained:
    """What training does with one tensor and with the range of its grid.

    Attributes:
        path: path of the quantizer.
        tensor: "input", "output" or the name of a parameter.
        value: "trained" or "frozen" for a parameter, "" for an activation.
        range: "learned" by an optimizer, "follows the weight", "fixed", or "input * weight" for
            the int32 grid of a bias.
    """

    path: str
    tensor: str
    value: str
    range: str


def what_trains(model: nn.Module) -> list[Trained]:
    """What training does with every quantizer of a model, in the order of its modules.

    Args:
        model: a simulation's model, `sim.model`.
    """
    return list(_rows(model))


def training_table(model: nn.Module) -> str:
    """`what_trains` as a text with one line a quantizer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3))
        >>> print(training_table(sim.model))  # doctest: +NORMALIZE_WHITESPACE
        quantizer                         tensor  value    range
        --------------------------------  ------  -------  ------------------
        0.param_quantizers.weight         weight  trained  follows the weight
        0.param_quantizers.bias           bias    trained  input * weight
        input_1_stub.output_quantizers.0  output           fixed
    """
    rows = [(r.path, r.tensor, r.value, r.range) for r in what_trains(model)]
    return table(("quantizer", "tensor", "value", "range"), rows)


def _rows(model: nn.Module) -> Iterator[Trained]:
    for place in quantizer_places(model):
        name, tensor, value = f"{place.path}.{place.role}_quantizers.{place.key}", place.role, ""
        trained = False
        if place.role == "param":
            trained = bool(getattr(place.module, place.key).requires_grad)
            tensor, value = place.key, "trained" if trained else "frozen"
        yield Trained(name, tensor, value, _range(place.quantizer, parameter=trained))


def _range(quantizer: QuantizerBase, *, parameter: bool) -> str:
    if isinstance(quantizer, BiasQuantizeDequantize):
        return DERIVED
    if any(p.requires_grad for p in quantizer.parameters()):
        return LEARNED
    follows = isinstance(quantizer, AffineQuantizer) and quantizer.follows
    return FOLLOWS if follows and parameter and quantizer.overwritable else FIXED
