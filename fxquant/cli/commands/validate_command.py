"""`fxquant validate`: the guidelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fxquant.cli.command import FINDINGS, common, main, model_options, show, take_data

if TYPE_CHECKING:
    from fxquant.cli.progress import Progress


@main.command(short_help="Tell what blocks quantization.")
@model_options
@common
def validate(factory: str, *, as_json: bool, progress: Progress, **options: Any) -> int:
    """Check a network against the guidelines; exit code 1 when something blocks quantization.

    What preparation repairs by itself, before anything is quantized, does not block.
    """
    options["data"] = take_data(options, "data")
    from fxquant.cli import actions

    report = actions.validate(factory, progress=progress, **options)
    click.echo(report.to_json()) if as_json else show(str(report))
    return FINDINGS if report.blocking else 0
