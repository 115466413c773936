"""AdaRound: `aimet_torch.adaround.adaround_weight`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant.aimet.model_preparer import recorded
from fxquant.errors import ConfigError
from fxquant.ptq.techniques import adaround
from fxquant.ptq.techniques.adaround import AdaroundParameters
from fxquant.quantization import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import fx, nn

__all__ = ["Adaround", "AdaroundParameters"]


class Adaround:
    """AdaRound on a float model; see `fxquant.Adaround`."""

    @classmethod
    def apply_adaround(
        cls,
        model: nn.Module,
        dummy_input: Any,
        params: AdaroundParameters,
        path: str | Path,
        filename_prefix: str,
        default_param_bw: int = 4,
        param_bw_override_list: Sequence[tuple[nn.Module, int]] | None = None,
        ignore_quant_ops_list: Sequence[nn.Module] | None = None,
        default_quant_scheme: QuantScheme | str = QuantScheme.post_training_tf_enhanced,
        default_config_file: str | Path | None = None,
    ) -> fx.GraphModule:
        """Round the weights of a float model; see `fxquant.Adaround.apply_adaround`."""
        recorded(model, dummy_input)
        return adaround.Adaround.apply_adaround(
            model, dummy_input, params, path, filename_prefix, default_param_bw,
            param_bw_override_list, ignore_quant_ops_list, default_quant_scheme,
            default_config_file,
        )  # fmt: skip

    @classmethod
    def apply_adaround_with_cache(
        cls,
        model: nn.Module,
        dummy_input: Any,
        params: AdaroundParameters,
        path: str | Path,
        filename_prefix: str,
        default_param_bw: int = 4,
        param_bw_override_list: Sequence[tuple[nn.Module, int]] | None = None,
        ignore_quant_ops_list: Sequence[nn.Module] | None = None,
        default_quant_scheme: QuantScheme | str = QuantScheme.post_training_tf_enhanced,
        default_config_file: str | Path | None = None,
        checkpoints_config: str | Path | None = None,
    ) -> fx.GraphModule:
        """As `apply_adaround`; activations are recomputed, so there is no cache to configure.

        Raises:
            ConfigError: FXQ904, `checkpoints_config` is given.
        """
        refuse_checkpoints_config(checkpoints_config)
        return cls.apply_adaround(
            model, dummy_input, params, path, filename_prefix, default_param_bw,
            param_bw_override_list, ignore_quant_ops_list, default_quant_scheme,
            default_config_file,
        )  # fmt: skip


def refuse_checkpoints_config(given: object) -> None:
    """Blocks of a model that are listed in a file mean nothing to a walk over its graph.

    Raises:
        ConfigError: FXQ904, they are given.
    """
    if given is not None:
        what = "checkpoints_config is given: the walk over the graph keeps what it needs itself"
        raise ConfigError("FXQ904", what, fix="leave it out: activations are computed again")
