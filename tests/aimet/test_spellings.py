"""Documented module paths lead to the same objects, and what is not here says why."""

from __future__ import annotations

import importlib

import pytest

import fxquant.aimet
from fxquant.aimet import spellings
from fxquant.errors import FxQuantError

# documented path below `aimet_torch` (or `aimet_common`) -> a documented name in it
PATHS = {
    "quantsim": "QuantizationSimModel",
    "quantsim.quantsim": "QuantizationSimModel",
    "v1.quantsim": "QuantizationSimModel",
    "v2.quantsim": "QuantizationSimModel",
    "v2.quantsim.quantsim": "QuantizationSimModel",
    "v2.quantsim.config_utils": "set_blockwise_quantization_for_weights",
    "quantsim.config_utils": "set_activation_quantizers_to_float",
    "common.defs": "QuantScheme",
    "defs": "QuantScheme",
    "model_preparer": "prepare_model",
    "model_validator": "ModelValidator",
    "model_validator.model_validator": "ModelValidator",
    "batch_norm_fold": "fold_all_batch_norms",
    "v2.batch_norm_fold": "fold_all_batch_norms_to_scale",
    "cross_layer_equalization": "equalize_model",
    "adaround": "Adaround",
    "adaround.adaround_weight": "AdaroundParameters",
    "v1.adaround.adaround_weight": "Adaround",
    "v2.adaround": "Adaround",
    "seq_mse": "apply_seq_mse",
    "v2.seq_mse": "SeqMseParams",
    "auto_quant": "AutoQuant",
    "auto_quant_v2": "AutoQuant",
    "v1.auto_quant": "AutoQuantWithAutoMixedPrecision",
    "bn_reestimation": "reestimate_bn_stats",
    "mixed_precision": "choose_mixed_precision",
    "v2.mixed_precision": "MixedPrecisionConfigurator",
    "quant_analyzer": "CallbackFunc",
    "quantization": "QuantizedTensor",
    "v2.quantization": "DequantizedTensor",
    "quantization.affine": "QuantizeDequantize",
    "v2.quantization.affine": "AffineEncoding",
    "quantization.affine.quantizer": "AffineQuantizerBase",
    "v2.quantization.base": "QuantizerBase",
    "v2.quantization.float": "FloatQuantizeDequantize",
    "v2.quantization.tensor": "EncodingError",
    "v2.quantization.encoding_analyzer": "PercentileEncodingAnalyzer",
    "nn": "QuantizationMixin",
    "v2.nn": "QuantizedLinear",
    "v2.nn.true_quant": "QuantizedConv2d",
    "v2.nn.base": "BaseQuantizationMixin",
    "nn.custom": "QuantizedAdd",
    "nn.modules.custom": "Concat",
    "elementwise_ops": "Add",
    "utils": "in_eval_mode",
    "v2.utils": "remove_all_quantizers",
    "onnx": "export",
    "onnx_utils": "OnnxExportApiArgs",
    "bias_correction": "correct_bias",
    "amp.mixed_precision_algo": "GreedyMixedPrecisionAlgo",
    "common.quantsim_config.utils": "get_path_for_per_channel_config",
}


@pytest.mark.parametrize("path", PATHS)
def test_a_documented_path_has_the_documented_name(path: str) -> None:
    module = importlib.import_module(f"fxquant.aimet.{path}")
    found = getattr(module, PATHS[path])
    plain = path.removeprefix("v1.").removeprefix("v2.")
    assert found is getattr(importlib.import_module(f"fxquant.aimet.{plain}"), PATHS[path])


def test_aliases_lead_to_modules_that_are_there() -> None:
    for home in {*spellings.SPELLINGS.values(), *spellings._VERSIONED}:
        assert importlib.import_module(f"fxquant.aimet.{home}").__file__, home


_BELOW = ("arch_checker.arch_checker", "meta.connectedgraph", "experimental.v2.quantsim")


@pytest.mark.parametrize("name", [*spellings.ABSENT, *_BELOW])
def test_what_is_not_here_says_why(name: str) -> None:
    module = importlib.import_module(f"fxquant.aimet.{name}")
    with pytest.raises(ImportError) as caught:
        _ = module.Anything
    assert isinstance(caught.value, FxQuantError)
    assert caught.value.code == "FXQ901"
    assert caught.value.fix


def test_the_face_has_the_names_at_its_top() -> None:
    sim = importlib.import_module("fxquant.aimet.v2.quantsim").QuantizationSimModel
    assert fxquant.aimet.QuantizationSimModel is sim
    assert "QuantizeDequantize" in dir(fxquant.aimet.quantization.affine)
    assert fxquant.aimet.nn.custom.QuantizedAdd
