"""``python -m fxquant`` is the `fxquant` command."""

from __future__ import annotations

from fxquant.cli import main

main(prog_name="fxquant")
