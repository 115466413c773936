"""`fxquant quantize`: from a network and data to files, proven and scored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from fxquant.cli.command import (
    DEPLOYMENTS,
    FINDINGS,
    FORMS,
    common,
    data_options,
    default_prefix,
    is_given,
    main,
    scheme_option,
    show,
    sim_options,
    take_data,
    weights_option,
)
from fxquant.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Command = TypeVar("Command", bound=Callable[..., Any])


def _search_options(command: Command) -> Command:
    """Add --evaluate and what goes with it."""
    for option in (
        click.option(
            "--max-seconds", type=click.FloatRange(0), help="Begin no technique after so many."
        ),
        click.option(
            "--on", default="sim", show_default=True, type=click.Choice(FORMS),
            help="What the search evaluates.",
        ),
        click.option(
            "--techniques", metavar="auto|none|NAME,NAME",
            help="What is tried; default: auto with --accuracy-drop, else none.",
        ),
        click.option(
            "--accuracy-drop", type=click.FloatRange(0), metavar="X",
            help="How much the score may lose, in its unit; exit code 1 when it loses more.",
        ),
        click.option(
            "--labels", "--label", "labels", metavar="KEY",
            help="Array with the labels of --evaluate; default: what is called so.",
        ),
        click.option(
            "--evaluate", "evaluation", metavar="DATA",
            help="Labelled .npz, or path.py:function that yields (inputs, labels) or dicts with "
            "labels: top-1 accuracy; or that is called with the model and returns a number.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@main.command(short_help="Write proven integer ONNX, and score it.")
@click.argument("factory")
@weights_option
@click.option(
    "--calibration", metavar="DATA", help=".npy, .npz or path.py:function; or --image-folder."
)
@data_options
@click.option("--out", required=True, metavar="DIR", help="Folder of the results.")
@click.option("--prefix", metavar="NAME", help="Name of the files; default: the function's name.")
@scheme_option
@click.option("--param-bw", type=int, help="Bits of weights; default: --config's or --target's.")
@click.option("--activation-bw", type=int, help="Bits of activations; default: in the same way.")
@click.option("--max-batches", type=click.IntRange(1), help="Stop calibration after so many.")
@click.option("--opset", default=21, show_default=True, type=click.IntRange(13, 23))
@click.option(
    "--deploy", type=click.Choice(DEPLOYMENTS),
    help="CPUs that the file is written for; default: what config or target say, else any.",
)  # fmt: skip
@click.option("--no-proof", is_flag=True, help="Do not compare with onnxruntime.")
@click.option(
    "--standard", is_flag=True, help="Operators of the ONNX standard only, none of onnxruntime's."
)
@_search_options
@sim_options
@common
def quantize(factory: str, *, as_json: bool, **options: Any) -> int:
    """Calibrate a network and write integer ONNX, proven against onnxruntime.

    Writes PREFIX.onnx, PREFIX.encodings, the float weights and a recipe into --out. Nothing is left
    there when the proof fails.

    With --evaluate the float network, the simulation and the file are scored; with --accuracy-drop
    techniques are tried until the score is near enough to the float network's. An --image-folder
    with a folder for each class is both: some images calibrate, the others are scored.
    """
    evaluation = options["evaluation"]
    if options["labels"] is not None and evaluation is None:
        raise ConfigError("FXQ733", "--labels names an array of --evaluate", fix="give --evaluate")
    if evaluation is not None and options["image_folder"] and options["calibration"]:
        what = "--calibration, --evaluate and --image-folder are three sources of data"
        raise ConfigError("FXQ734", what, fix="leave one of them out")
    options["prefix"] = options["prefix"] or default_prefix(factory)
    take_data(dict(options), "calibration")
    if options["techniques"] not in (None, "auto", "none"):
        options["techniques"] = options["techniques"].split(",")
    searches = ("evaluation", "image_folder", "techniques", "accuracy_drop")
    if any(options[name] is not None for name in searches) and not is_given("scheme"):
        options["scheme"] = None  # then the search may choose it
    from fxquant.cli import quantizing

    out, progress = options.pop("out"), options.pop("progress")
    outcome = quantizing.carry_out(quantizing.settings_of(factory, **options), out, progress)
    if as_json:
        click.echo(json.dumps(outcome.to_dict(), indent=1))
    else:
        show(str(outcome))
    return 0 if outcome.met else FINDINGS
