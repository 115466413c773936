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
@click.option(
    "--format", "form", type=click.Choice(("text", "wide", "json", "model-explorer")),
    help="wide: with shapes, grids, owners and lines; model-explorer: node data to lay over the "
    "exported file.",
)  # fmt: skip
@model_options
@sim_options
@common
def inspect(
    factory: str,
    *,
    target: str,
    form: str | None,
    as_json: bool,
    progress: Progress,
    **options: Any,
) -> int:
    """Show what would be quantized and why, operator by operator, without calibrating.

    With --target: which operators the target takes, which not and why, and in how many parts.
    """
    parts = options["regions"] or options["chosen"] or options["kept"]
    if options["picture"] and parts:
        raise ConfigError("FXQ735", "--picture shows a target, not regions", fix="leave one out")
    if options["picture"] and not options["picture"].endswith((".svg", ".html")):
        what = f"--picture cannot write {options['picture']}"
        raise ConfigError("FXQ735", what, fix="name a file .svg or .html")
    by_operator = form in ("wide", "model-explorer")
    if by_operator and (parts or options["picture"] or as_json):
        what = f"--format {form} shows operators, and nothing else"
        raise ConfigError("FXQ738", what, fix="leave --json, --picture and regions out")
    options["data"] = take_data(options, "data")
    from fxquant.cli import actions

    named = is_given("target") and not by_operator
    plan = actions.inspect(factory, target=target, named=named, progress=progress, **options)
    if as_json or form == "json":
        click.echo(plan.to_json())
    elif by_operator:
        click.echo(plan.text(None) if form == "wide" else plan.to_model_explorer())
    else:
        show(str(plan))
    return 0
