"""Documented calls can be written as documented: names of parameters, their order and defaults."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from fxquant.aimet.defs import QuantizationDataType, QuantScheme

ENHANCED = QuantScheme.post_training_tf_enhanced
NEEDED = inspect.Parameter.empty

# module, name -> parameters in their documented order, with their documented defaults
DOCUMENTED: dict[tuple[str, str], dict[str, Any]] = {
    ("quantsim", "QuantizationSimModel"): {
        "model": NEEDED, "dummy_input": NEEDED, "quant_scheme": ENHANCED,
        "rounding_mode": "nearest", "default_output_bw": 8, "default_param_bw": 8,
        "in_place": False, "config_file": None, "default_data_type": QuantizationDataType.int,
    },
    ("quantsim", "QuantizationSimModel.export"): {
        "path": NEEDED, "filename_prefix": NEEDED, "dummy_input": None, "onnx_export_args": None,
        "propagate_encodings": False, "export_to_torchscript": False,
        "use_embedded_encodings": False, "export_model": True, "filename_prefix_encodings": None,
    },
    ("quantsim", "QuantizationSimModel.compute_encodings"): {
        "forward_pass_callback": NEEDED, "forward_pass_callback_args": ...,
    },
    ("quantsim", "QuantizationSimModel.load_encodings"): {
        "encodings": NEEDED, "strict": True, "partial": True, "requires_grad": None,
        "allow_overwrite": True,
    },
    ("quantsim", "QuantizationSimModel.load_and_freeze_encodings"): {
        "encoding_path": NEEDED, "ignore_when_quantizer_disabled": False,
    },
    ("quantsim", "QuantizationSimModel.set_and_freeze_param_encodings"): {"encoding_path": NEEDED},
    ("quantsim", "QuantizationSimModel.save_encodings_to_json"): {
        "path": NEEDED, "filename_prefix": NEEDED,
    },
    ("quantsim", "QuantizationSimModel.set_percentile_value"): {"percentile_value": NEEDED},
    ("quantsim", "QuantizationSimModel.exclude_layers_from_quantization"): {
        "layers_to_exclude": NEEDED,
    },
    ("quantsim", "QuantizationSimModel.exclude_param_from_quantization"): {
        "param_name_to_exclude": NEEDED,
    },
    ("quantsim", "QuantizationSimModel.get_original_model"): {
        "model": NEEDED, "qdq_weights": False,
    },
    ("quantsim", "QuantParams"): {
        "weight_bw": 8, "act_bw": 8, "round_mode": "nearest", "quant_scheme": ENHANCED,
        "config_file": None,
    },
    ("quantsim", "save_checkpoint"): {"quant_sim_model": NEEDED, "file_path": NEEDED},
    ("quantsim", "load_checkpoint"): {"file_path": NEEDED},
    ("quantsim", "load_encodings_to_sim"): {
        "quant_sim_model": NEEDED, "pytorch_encoding_path": NEEDED,
    },
    ("quantsim", "compute_encodings_for_sims"): {
        "sim_list": NEEDED, "forward_pass_callback": NEEDED, "forward_pass_callback_args": NEEDED,
    },
    ("quantsim", "check_accumulator_overflow"): {
        "model": NEEDED, "quant_bw": NEEDED, "accum_bw": NEEDED,
    },
    ("model_preparer", "prepare_model"): {
        "model": NEEDED, "modules_to_exclude": None, "module_classes_to_exclude": None,
        "concrete_args": None,
    },
    ("model_validator", "ModelValidator.validate_model"): {
        "model": NEEDED, "model_input": NEEDED,
    },
    ("model_validator", "ModelValidator.add_check"): {"validation_check": NEEDED},
    ("batch_norm_fold", "fold_all_batch_norms"): {
        "model": NEEDED, "input_shapes": None, "dummy_input": None,
    },
    ("batch_norm_fold", "fold_given_batch_norms"): {"model": NEEDED, "layer_pairs": NEEDED},
    ("batch_norm_fold", "fold_all_batch_norms_to_scale"): {"sim": NEEDED},
    ("cross_layer_equalization", "equalize_model"): {
        "model": NEEDED, "input_shapes": None, "dummy_input": None,
    },
    ("adaround", "AdaroundParameters"): {
        "data_loader": NEEDED, "num_batches": NEEDED, "default_num_iterations": None,
        "default_reg_param": 0.01, "default_beta_range": (20, 2), "default_warm_start": 0.2,
        "forward_fn": None,
    },
    ("adaround", "Adaround.apply_adaround"): {
        "model": NEEDED, "dummy_input": NEEDED, "params": NEEDED, "path": NEEDED,
        "filename_prefix": NEEDED, "default_param_bw": 4, "param_bw_override_list": None,
        "ignore_quant_ops_list": None, "default_quant_scheme": ENHANCED,
        "default_config_file": None,
    },
    ("auto_quant", "AutoQuant"): {
        "model": NEEDED, "dummy_input": NEEDED, "data_loader": NEEDED, "eval_callback": NEEDED,
        "param_bw": 8, "output_bw": 8, "quant_scheme": ENHANCED, "rounding_mode": "nearest",
        "config_file": None, "results_dir": ..., "cache_id": None, "strict_validation": True,
        "model_prepare_required": True,
    },
    ("auto_quant", "AutoQuant.optimize"): {"allowed_accuracy_drop": 0.0},
    ("bias_correction", "correct_bias"): {
        "model": NEEDED, "quant_params": NEEDED, "num_quant_samples": NEEDED,
        "data_loader": NEEDED, "num_bias_correct_samples": NEEDED, "conv_bn_dict": None,
        "perform_only_empirical_bias_corr": True, "layers_to_ignore": None,
    },
    ("quant_analyzer", "QuantAnalyzer"): {
        "model": NEEDED, "dummy_input": NEEDED, "forward_pass_callback": NEEDED,
        "eval_callback": ..., "modules_to_ignore": None,
    },
    ("quant_analyzer", "QuantAnalyzer.analyze"): {
        "quant_scheme": ENHANCED, "default_param_bw": 8, "default_output_bw": 8,
        "config_file": None, "results_dir": ...,
    },
    ("quant_analyzer", "QuantAnalyzer.enable_per_layer_mse_loss"): {
        "unlabeled_dataset_iterable": NEEDED, "num_batches": NEEDED,
    },
    ("bn_reestimation", "reestimate_bn_stats"): {
        "model": NEEDED, "dataloader": NEEDED, "num_batches": 100, "forward_fn": None,
    },
    ("mixed_precision", "choose_mixed_precision"): {
        "sim": NEEDED, "dummy_input": NEEDED, "candidates": NEEDED,
        "eval_callback_for_phase1": NEEDED, "eval_callback_for_phase2": NEEDED,
        "allowed_accuracy_drop": NEEDED, "results_dir": NEEDED, "clean_start": NEEDED,
        "forward_pass_callback": NEEDED, "use_all_amp_candidates": False, "phase2_reverse": False,
        "phase1_optimize": True, "amp_search_algo": ...,
    },
    ("mixed_precision", "MixedPrecisionConfigurator"): {"sim": NEEDED},
    ("mixed_precision", "MixedPrecisionConfigurator.set_precision"): {
        "arg": NEEDED, "activation": NEEDED, "param": None,
    },
    ("quantsim.config_utils", "set_blockwise_quantization_for_weights"): {
        "sim": NEEDED, "arg": NEEDED, "bitwidth": NEEDED, "symmetric": NEEDED, "block_size": NEEDED,
    },
    ("quantsim.config_utils", "set_grouped_blockwise_quantization_for_weights"): {
        "sim": NEEDED, "arg": NEEDED, "bitwidth": NEEDED, "symmetric": NEEDED,
        "decompressed_bw": NEEDED, "block_size": NEEDED, "block_grouping": -1,
    },
    ("quantsim.config_utils", "set_activation_quantizers_to_float"): {
        "sim": NEEDED, "arg": NEEDED, "exponent_bits": None, "mantissa_bits": None, "dtype": None,
    },
    ("quantization.encoding_analyzer", "MinMaxEncodingAnalyzer"): {
        "shape": NEEDED, "block_size": None,
    },
    ("quantization.encoding_analyzer", "PercentileEncodingAnalyzer"): {
        "shape": NEEDED, "num_bins": 2048, "percentile": 100, "block_size": None,
    },
    ("defs", "CallbackFunc"): {"func": NEEDED, "func_callback_args": None},
}  # fmt: skip


@pytest.mark.parametrize(("module", "name"), DOCUMENTED, ids="-".join)
def test_parameters_are_those_of_the_documents(module: str, name: str) -> None:
    found: Any = importlib.import_module(f"fxquant.aimet.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    positional = [
        p for p in inspect.signature(found).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"
    ]  # fmt: skip
    wanted = DOCUMENTED[module, name]
    assert [p.name for p in positional][: len(wanted)] == list(wanted)
    for parameter in positional[: len(wanted)]:
        if wanted[parameter.name] is not ...:
            assert parameter.default == wanted[parameter.name], parameter.name
    assert all(p.default is not NEEDED for p in positional[len(wanted) :])
