"""Paths of configuration files: `aimet_common.quantsim_config.utils`."""

from __future__ import annotations

from importlib.resources import files


def get_path_for_per_channel_config() -> str:
    """Path of the configuration with one grid for each channel of a weight."""
    return str(files("fxquant.presets") / "per_channel.json")


def get_path_for_per_tensor_config() -> str:
    """Path of the configuration with one grid for each weight."""
    return str(files("fxquant.presets") / "per_tensor.json")
