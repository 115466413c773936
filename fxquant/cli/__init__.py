"""The `fxquant` command: its subcommands, and what they read from the command line."""

from fxquant.cli import commands
from fxquant.cli.command import main

__all__ = ["commands", "main"]
