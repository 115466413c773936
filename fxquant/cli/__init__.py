"""The `fxquant` command: its subcommands, and what they read from the command line."""

from fxquant.cli import recipe_commands, sharding
from fxquant.cli.command import main

__all__ = ["main", "recipe_commands", "sharding"]
