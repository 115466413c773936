"""The `fxquant` command: its subcommands, and what they read from the command line."""

from fxquant.cli import sharding
from fxquant.cli.command import main

__all__ = ["main", "sharding"]
