"""`fxquant inspect`: what would be quantized, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fxquant.cli.command import common, is_given, main, model_options, show, sim_options, take_data
from fxquant.errors import ConfigError

if TYPE_CHECKING:
    from fxquant.cli.progress import Progress


@main.command(short_help="Show what would be quantized, and why.")
@click.option("--regions", is_flag=True, help="Show the regions that stubs mark.")
@click.option("--region", "chosen", multiple=True, metavar="NAME", help="Quantize this part only.")
@click.option("--keep-float", "kept", multiple=True, metavar="NAME", help="Do not quantize this.")
@click.option(
    "--picture", metavar="FILE.svg|FILE.html",
    help="Draw what the target takes; .html: a page to look around in, as of fxquant report.",
)  # fmt: skip
@model_options
@sim_options
@common
def inspect(factory: str, *, target: str, as_json: bool, progress: Progress, **options: Any) -> int:
    """Show what would be quantized and why, operator by operator, without calibrating.

    With --target: which operators the target takes, which not and why, and in how many parts.
    """
    parts = options["regions"] or options["chosen"] or options["kept"]
    if options["picture"] and parts:
        raise ConfigError("FXQ735", "--picture shows a target, not regions", fix="leave one out")
    options["data"] = take_data(options, "data")
    from fxquant.cli import actions

    named = is_given("target")
    plan = actions.inspect(factory, target=target, named=named, progress=progress, **options)
    click.echo(plan.to_json()) if as_json else show(str(plan))
    return 0
