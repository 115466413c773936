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
def quantize(
    factory: str,
    *,
    calibration: str,
    batch_size: int,
    max_batches: int | None,
    evaluation: str | None,
    labels: str | None,
    as_json: bool,
    progress: Progress,
    **options: Any,
) -> int:
    """Calibrate a network and write integer ONNX, proven against onnxruntime.

    Writes PREFIX.onnx, PREFIX.encodings and the float weights into --out. Nothing is left there
    when the proof fails.

    With --evaluate the float network, the simulation and the file are scored; with --accuracy-drop
    techniques are tried until the score is near enough to the float network's.
    """
    check_batch_size(calibration)
    if labels is not None and evaluation is None:
        raise ConfigError("FXQ733", "--labels names an array of --evaluate", fix="give --evaluate")
    from fxquant.cli import actions

    options["prefix"] = options["prefix"] or factory.rpartition(":")[2]
    if any(given is not None for given in (evaluation, options["techniques"], _drop(options))):
        given = {"batch_size": batch_size, "max_batches": max_batches, "progress": progress}
        return _search(factory, calibration, evaluation, labels, as_json, options | given)
    report, files = actions.quantize(
        factory, calibration, batch_size=batch_size, max_batches=max_batches, progress=progress,
        **options,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"files": files, "report": json.loads(report.to_json())}, indent=1))
    else:
        click.echo("\n".join([str(report), "", "written:", *(f"  {f}" for f in files)]))
    return 0


def _drop(options: dict[str, Any]) -> float | None:
    found: float | None = options["accuracy_drop"]
    return found


def _search(
    factory: str, calibration: str, evaluation: str | None, labels: str | None, as_json: bool,
    options: dict[str, Any],
) -> int:  # fmt: skip
    from fxquant.cli import actions
    from fxquant.cli import evaluation as texts

    named = options["techniques"] or ("none" if _drop(options) is None else "auto")
    options["techniques"] = named if named in ("auto", "none") else named.split(",")
    if not is_given("scheme"):  # then the search may choose it
        options["scheme"] = None
    result, sizes = actions.search(
        factory, calibration, evaluation=evaluation, labels=labels, **options
    )
    files = [str(file) for file in result.files]
    if as_json:
        report = json.loads(result.export.to_json())
        found = {"files": files, "report": report, "evaluation": texts.plain(result, sizes)}
        click.echo(json.dumps(found, indent=1))
    else:
        parts = [str(result.export), "", str(result.report), "", texts.summary(result, sizes), ""]
        click.echo("\n".join([*parts, "written:", *(f"  {file}" for file in files)]))
    return 0 if result.met else FINDINGS
