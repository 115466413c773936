"""`fxquant quantize`: from a network and data to files, proven and scored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from fxquant.cli.command import (
    DEPLOYMENTS,
    FINDINGS,
    FORMS,
    SCHEMES,
    check_batch_size,
    common,
    is_given,
    main,
    sim_options,
)
from fxquant.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from fxquant.cli.progress import Progress

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
        click.option("--labels", metavar="NAME", help="The array with the labels of --evaluate."),
        click.option(
            "--evaluate", "evaluation", metavar="DATA",
            help="Labelled .npz or function of (inputs, labels): top-1 in percent; or a function "
            "of the model that returns a number.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@main.command()
@click.argument("factory")
@click.option("--weights", metavar="FILE", help="State dict: .safetensors, .pt or .pth.")
@click.option(
    "--calibration", required=True, metavar="DATA", help=".npy, .npz or path.py:function."
)
@click.option("--out", required=True, metavar="DIR", help="Folder of the results.")
@click.option("--prefix", metavar="NAME", help="Name of the files; default: the function's name.")
@click.option("--scheme", default="tf_enhanced", show_default=True, type=click.Choice(SCHEMES))
@click.option("--param-bw", type=int, help="Bits of weights; default: --config's or --target's.")
@click.option("--activation-bw", type=int, help="Bits of activations; default: in the same way.")
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1))
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
def quantize(factory: str, *, as_json: bool, progress: Progress, **options: Any) -> int:
    """Calibrate a network and write integer ONNX, proven against onnxruntime.

    Writes PREFIX.onnx, PREFIX.encodings, the float weights and a recipe into --out. Nothing is left
    there when the proof fails.

    With --evaluate the float network, the simulation and the file are scored; with --accuracy-drop
    techniques are tried until the score is near enough to the float network's.
    """
    check_batch_size(options["calibration"])
    if options["labels"] is not None and options["evaluation"] is None:
        raise ConfigError("FXQ733", "--labels names an array of --evaluate", fix="give --evaluate")
    from fxquant.cli import actions

    options["prefix"] = options["prefix"] or factory.rpartition(":")[2]
    named = options["techniques"]
    if named not in (None, "auto", "none"):
        options["techniques"] = named.split(",")
    if any(options[name] is not None for name in ("evaluation", "techniques", "accuracy_drop")):
        options["scheme"] = options["scheme"] if is_given("scheme") else None
    outcome = actions.quantize(factory, progress=progress, **options)
    click.echo(json.dumps(outcome.to_dict(), indent=1) if as_json else str(outcome))
    return 0 if outcome.met else FINDINGS
