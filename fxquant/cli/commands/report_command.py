"""`fxquant report`: one HTML file about a network and its simulation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from fxquant.cli.command import (
    common,
    main,
    model_options,
    scheme_option,
    sim_options,
    take_data,
)
from fxquant.errors import ConfigError

if TYPE_CHECKING:
    from fxquant.cli.progress import Progress


@main.command("report", short_help="Write one HTML file about a network.")
@click.option("--out", required=True, metavar="FILE.html", help="The report.")
@scheme_option
@click.option("--param-bw", type=int, help="Bits of weights; default: --config's or --target's.")
@click.option("--activation-bw", type=int, help="Bits of activations; default: in the same way.")
@click.option("--encodings", metavar="FILE", help="Take these instead of calibrating on --data.")
@click.option(
    "--samples",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="Rows of --data that errors and values are of.",
)
@click.option("--evaluate", "evaluation", metavar="DATA", help="As for quantize.")
@click.option("--labels", metavar="NAME", help="The array with the labels of --evaluate.")
@click.option("--export", metavar="FILE", help="PREFIX.report.json of an export, or its folder.")
@click.option("--profile", metavar="FILE", help="What `fxquant profile --json` printed.")
@click.option("--mixed-precision", metavar="FILE", help="JSON of a search for mixed precision.")
@click.option("--analyzer", metavar="FILE", help="JSON of a QuantAnalyzer's result.")
@click.option("--audit", metavar="FILE", help="JSON of an audit of calibration data.")
@click.option("--recipe", metavar="FILE", help="What a run decided: PREFIX.recipe.yaml.")
@model_options
@sim_options
@common
def write_report(
    factory: str, *, as_json: bool, progress: Progress, **options: Any
) -> int:  # fmt: skip
    """Write one HTML file: overview, folded graph, every tensor, runtime. It loads nothing.

    With --data the network is calibrated on it, and the report shows values and errors. With
    --input-shape it shows what would be quantized, and why.
    """
    if options["labels"] is not None and options["evaluation"] is None:
        raise ConfigError("FXQ737", "--labels names an array of --evaluate", fix="give --evaluate")
    data = options["data"] = take_data(options, "data")
    if options["evaluation"] is not None and data.shapes and options["encodings"] is None:
        what = "--evaluate needs a calibrated network"
        raise ConfigError("FXQ737", what, fix="add --data or --encodings")
    from fxquant.cli import report_actions

    file = report_actions.report(factory, progress=progress, **options)
    click.echo(json.dumps({"file": file}) if as_json else f"written: {file}")
    return 0
