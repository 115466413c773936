"""What techniques share beside the walk: their data, biases, and the rows they learn from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.calibrate import is_iterable_of_batches
from fxquant.errors import CalibrationError
from fxquant.nn.calibration import fit_biases
from fxquant.ptq.layers.tied_layers import TiedLayer
from fxquant.ptq.solving.gradient_rounding import Rows
from fxquant.quantization.affine import AffineQuantizer

if TYPE_CHECKING:
    from fxquant.ptq.layers.layer import Layer
    from fxquant.ptq.sampling import LayerData

    ForwardFn = Callable[[nn.Module, Any], Any]


def batches(
    gm: nn.Module, data: Any, number: int | None = None, forward_fn: ForwardFn | None = None
) -> Any:
    """The first batches of data, as the walk takes them.

    Args:
        gm: the model that `forward_fn` calls.
        data: an iterable of batches.
        number: how many; None: all.
        forward_fn: `forward_fn(model, batch)` calls the model on a batch in its own way; what the
            model is called with is what counts.

    Raises:
        CalibrationError: FXQ455, there are fewer, or `forward_fn` does not call the model.
    """
    if number is None and forward_fn is None:
        return data
    if isinstance(data, Tensor):
        data = [data]
    if not is_iterable_of_batches(data):
        return data  # the walk says what is wrong with it
    length = len(data) if isinstance(data, Sized) else None
    if number is not None and length is not None and 0 < length < number:
        what = f"num_batches is {number}, but the data are {length} batch(es)"
        raise CalibrationError("FXQ455", what, fix="pass more data, or a smaller num_batches")
    chosen = itertools.islice(data, number)
    return chosen if forward_fn is None else _captured(gm, chosen, forward_fn)


def _captured(gm: nn.Module, data: Iterable[Any], forward_fn: ForwardFn) -> Iterator[Any]:
    """What a function calls the model with, batch by batch."""
    names = [str(n.target).lstrip("*") for n in gm.graph.nodes if n.op == "placeholder"]  # type: ignore[union-attr]
    calls: list[dict[str, Any]] = []

    def seen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(dict(zip(names, args, strict=False)) | kwargs)

    for index, batch in enumerate(data):
        handle = gm.register_forward_pre_hook(seen, with_kwargs=True)
        try:
            with torch.no_grad():
                forward_fn(gm, batch)
        finally:
            handle.remove()
        if not calls:
            what = f"forward_fn did not call the model on batch {index}"
            raise CalibrationError("FXQ455", what, fix="call the model that it is given")
        yield from calls
        calls.clear()


def set_bias(layer: Layer, bias: Tensor) -> None:
    """Give a layer a bias, as `Layer.bias` has it; a range of the bias's own follows, if it may."""
    with torch.no_grad(), layer.changing():
        layer.set_bias(bias)
    for use in layer.uses:
        module = use.module
        quantizer = module.param_quantizers._modules.get("bias")
        if isinstance(quantizer, AffineQuantizer) and quantizer.overwritable:
            with quantizer.compute_encodings():
                quantizer(module.bias.detach())
        fit_biases(module)
        module.drop_kept()


def rows_of(
    layer: Layer, data: LayerData, activation: Callable[[Tensor], Tensor] | None
) -> tuple[Rows, Rows]:
    """What is learned on and judged by, behind an activation.

    Layers with one weight have different biases and activations behind them: they are looked at
    before these.

    Args:
        layer: the layer.
        data: what it is given, with rows if they are not the same.
        activation: what follows it.
    """
    bias = layer.bias()
    if isinstance(layer, TiedLayer):
        data, bias, activation = data.without_bias(bias), torch.zeros_like(bias[0]), None
    seen, held = data.rows or data.held, data.held
    return Rows(*seen, bias.float(), activation), Rows(*held, bias.float(), activation)
