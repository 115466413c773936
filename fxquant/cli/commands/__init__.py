"""The commands, a file for each family: a new one is a file here and its name in this list.

Importing a file adds its commands to `fxquant.cli.command.main`. At their top the files import
nothing slow; what does the work is imported by a command when it runs.
"""

from __future__ import annotations

from fxquant.cli.commands import (
    catalogue_commands,
    encodings_commands,
    inspect_command,
    onnx_commands,
    quantize_command,
    recipe_commands,
    report_command,
    shard_commands,
    validate_command,
)

__all__ = [
    "catalogue_commands",
    "encodings_commands",
    "inspect_command",
    "onnx_commands",
    "quantize_command",
    "recipe_commands",
    "report_command",
    "shard_commands",
    "validate_command",
]
