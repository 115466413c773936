"""Bias correction of a float model: `aimet_torch.bias_correction`."""

from __future__ import annotations

import copy
import math
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant import sim
from fxquant.aimet.model_preparer import recorded
from fxquant.config import QuantConfig
from fxquant.errors import CalibrationError
from fxquant.ptq.batch_norms.bn_fold import fold_all_batch_norms
from fxquant.ptq.techniques import bias_correction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fxquant.aimet.sim_arguments import QuantParams
    from fxquant.ptq.techniques.bias_correction import BiasReport


def correct_bias(
    model: nn.Module,
    quant_params: QuantParams,
    num_quant_samples: int,
    data_loader: Iterable[Any],
    num_bias_correct_samples: int,
    conv_bn_dict: Mapping[nn.Module, Any] | None = None,
    perform_only_empirical_bias_corr: bool = True,
    layers_to_ignore: Sequence[nn.Module] | None = None,
) -> BiasReport:
    """Change the biases of a float model by what quantization adds to the means of its layers.

    The model is simulated, `fxquant.correct_bias` corrects the simulation, and its biases become
    those of the model. Batch norms are not folded for this; layers without a bias stay without.

    Args:
        model: the float model in evaluation; its biases are changed.
        quant_params: bits and scheme.
        num_quant_samples: samples that ranges are calibrated on.
        data_loader: batches; of a batch with labels the first element is the input.
        num_bias_correct_samples: samples that means are measured on.
        conv_bn_dict: not needed: the graph tells.
        perform_only_empirical_bias_corr: False: means are computed where a batch norm tells them.
        layers_to_ignore: modules whose biases stay.

    Raises:
        CalibrationError: FXQ913, there are no batches; as for `fxquant.correct_bias`.
    """
    first = _input(next(iter(data_loader), None))
    recorded(model, first)
    config = QuantConfig.load(quant_params.config_file).replace(fold_batch_norms=False)
    simulated = sim.QuantizationSimModel(
        model, first, quant_params.quant_scheme, quant_params.act_bw, quant_params.weight_bw,
        config=config,
    )  # fmt: skip
    size = len(first)
    inputs = (_input(batch) for batch in data_loader)
    simulated.compute_encodings(list(islice(inputs, math.ceil(num_quant_samples / size))))
    paths = {id(module): path for path, module in model.named_modules()}
    report = bias_correction.correct_bias(
        simulated, (_input(batch) for batch in data_loader),
        "empirical" if perform_only_empirical_bias_corr else "analytical",
        num_batches=math.ceil(num_bias_correct_samples / size), add_biases=False,
        modules_to_exclude=[paths[id(module)] for module in layers_to_ignore or ()] or None,
    )  # fmt: skip
    corrected = dict(simulated.model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and name in corrected:
                parameter.copy_(corrected[name])
    return report


def find_all_conv_bn_with_activation(
    model: nn.Module, input_shape: Sequence[Any]
) -> dict[nn.Module, nn.Module]:
    """Layers and the batch norms behind them; what `correct_bias` finds itself.

    Args:
        model: the float model; it is not changed.
        input_shape: shape of the input, or a sequence of shapes.
    """
    found = fold_all_batch_norms(copy.deepcopy(model), input_shape)
    return {model.get_submodule(a): model.get_submodule(b) for a, b in found.paths}


def _input(batch: Any) -> Tensor:
    found = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(found, Tensor):
        what = "the data loader gives no batches whose first element is a tensor"
        raise CalibrationError("FXQ913", what, fix="pass batches of inputs, or of (input, label)")
    return found
