"""`fxquant validate`: the guidelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fxquant.cli.command import FINDINGS, check_example, common, main, model_options

if TYPE_CHECKING:
    from fxquant.cli.progress import Progress


@main.command()
@model_options
@common
def validate(factory: str, *, as_json: bool, progress: Progress, **options: Any) -> int:
    """Check a network against the guidelines; exit code 1 when it breaks one."""
    check_example(options)
    from fxquant.cli import actions

    report = actions.validate(factory, progress=progress, **options)
    click.echo(report.to_json() if as_json else str(report))
    return 0 if report else FINDINGS
