"""The `fxquant` command.

Exit codes: 0 all is well; 1 the model breaks guidelines, cannot be quantized, loses more than
--accuracy-drop, or the proof failed;
2 the command line, or a file it names, cannot be used.

This file is what a command line may say; `fxquant.cli.actions` is what is done then. It is imported
by the commands, because torch is, and `--help` and mistakes in a command line need neither.

With ``--json`` the result, or the error, is the only thing on standard output. Progress and tables
of progress go to standard error.
"""

from __future__ import annotations

import functools
import json
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fxquant._version import __version__
from fxquant.cli.progress import Progress
from fxquant.errors import ConfigError, FxQuantError

if TYPE_CHECKING:
    from collections.abc import Callable

    Command = TypeVar("Command", bound=Callable[..., Any])

FINDINGS, USAGE = 1, 2

# written out: what knows them imports torch, which `--help` does without
SCHEMES = (
    "min_max", "tf_enhanced", "percentile", "mse", "entropy", "moving_average",
    "range_learning_tf", "range_learning_tf_enhanced", "tf",
)  # fmt: skip
DEPLOYMENTS = ("any", "vnni", "avx2", "arm")
FORMS = ("sim", "integer", "onnxruntime")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fxquant")
def main() -> None:
    """Quantize PyTorch networks and prove the integer ONNX against onnxruntime.

    FACTORY is path.py:function or package.module:function. The function takes no arguments and
    returns the network.
    """


def _common(command: Command) -> Command:
    """Add --json, --quiet and --debug, and turn errors into text and exit codes."""

    @functools.wraps(command)
    def run(*args: Any, as_json: bool, debug: bool, quiet: bool, **options: Any) -> None:
        progress = Progress(quiet=quiet)
        try:
            with progress, warnings.catch_warnings():
                warnings.showwarning = progress.warn
                code = command(*args, as_json=as_json, progress=progress, **options)
        except FxQuantError as error:
            _fail(error.to_dict(), str(error), as_json=as_json, debug=debug)
            code = USAGE if isinstance(error, ConfigError) else FINDINGS
        except Exception as error:  # the outermost face: a user sees a message, not a traceback
            what = f"{type(error).__name__}: {error}"
            plain = {"error": type(error).__name__, "code": None, "what": str(error)}
            hint = "" if debug else "\n  this was not expected; --debug shows where it happened"
            _fail(plain, what + hint, as_json=as_json, debug=debug)
            code = FINDINGS
        click.get_current_context().exit(code)

    for option in (
        click.option("--debug", is_flag=True, help="Show tracebacks of errors."),
        click.option("--quiet", "-q", is_flag=True, help="No progress."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output."),
    ):
        run = option(run)
    return run  # type: ignore[return-value]


def _model_options(command: Command) -> Command:
    """Add FACTORY, --weights and the ways to give example inputs."""
    for option in (
        click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1)),
        click.option(
            "--input-shape",
            "shapes",
            multiple=True,
            metavar="N,C,H,W",
            help="Random input of this shape; once for each input.",
        ),
        click.option("--data", metavar="DATA", help=".npy, .npz or path.py:function."),
        click.option("--weights", metavar="FILE", help="State dict: .safetensors, .pt or .pth."),
        click.argument("factory"),
    ):
        command = option(command)
    return command


def _sim_options(command: Command) -> Command:
    """Add --config and --target."""
    for option in (
        click.option("--target", default="onnxruntime_x86", show_default=True, metavar="NAME"),
        click.option("--config", metavar="FILE", help="Configuration, JSON; AIMET's too."),
    ):
        command = option(command)
    return command


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
@_sim_options
@_common
def quantize(factory: str, *, as_json: bool, progress: Progress, **options: Any) -> int:
    """Calibrate a network and write integer ONNX, proven against onnxruntime.

    Writes PREFIX.onnx, PREFIX.encodings, the float weights and a recipe into --out. Nothing is left
    there when the proof fails.

    With --evaluate the float network, the simulation and the file are scored; with --accuracy-drop
    techniques are tried until the score is near enough to the float network's.
    """
    _check_batch_size(options["calibration"])
    if options["labels"] is not None and options["evaluation"] is None:
        raise ConfigError("FXQ733", "--labels names an array of --evaluate", fix="give --evaluate")
    from fxquant.cli import actions

    options["prefix"] = options["prefix"] or factory.rpartition(":")[2]
    named = options["techniques"]
    if named not in (None, "auto", "none"):
        options["techniques"] = named.split(",")
    if any(options[name] is not None for name in ("evaluation", "techniques", "accuracy_drop")):
        options["scheme"] = options["scheme"] if _is_given("scheme") else None
    outcome = actions.quantize(factory, progress=progress, **options)
    click.echo(json.dumps(outcome.to_dict(), indent=1) if as_json else str(outcome))
    return 0 if outcome.met else FINDINGS


@main.command()
@_model_options
@_common
def validate(factory: str, *, as_json: bool, progress: Progress, **options: Any) -> int:
    """Check a network against the guidelines; exit code 1 when it breaks one."""
    _check_example(options)
    from fxquant.cli import actions

    report = actions.validate(factory, progress=progress, **options)
    click.echo(report.to_json() if as_json else str(report))
    return 0 if report else FINDINGS


@main.command()
@click.option("--regions", is_flag=True, help="Show the regions that stubs mark.")
@click.option("--region", "chosen", multiple=True, metavar="NAME", help="Quantize this part only.")
@click.option("--keep-float", "kept", multiple=True, metavar="NAME", help="Do not quantize this.")
@click.option("--picture", metavar="FILE.svg", help="Draw what the target takes.")
@_model_options
@_sim_options
@_common
def inspect(factory: str, *, target: str, as_json: bool, progress: Progress, **options: Any) -> int:
    """Show what would be quantized and why, operator by operator, without calibrating.

    With --target: which operators the target takes, which not and why, and in how many parts.
    """
    parts = options["regions"] or options["chosen"] or options["kept"]
    if options["picture"] and parts:
        raise ConfigError("FXQ735", "--picture shows a target, not regions", fix="leave one out")
    _check_example(options)
    from fxquant.cli import actions

    named = _is_given("target")
    plan = actions.inspect(factory, target=target, named=named, progress=progress, **options)
    click.echo(plan.to_json() if as_json else str(plan))
    return 0


def _is_given(option: str) -> bool:
    """Whether an option stands on the command line."""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


@main.command()
@click.argument("file", metavar="MODEL.onnx")
@click.option(
    "--data", metavar="FILE.npz",
    help="Inputs by name: also runs the model in onnxruntime and in the integer executor.",
)  # fmt: skip
@_common
def verify(file: str, data: str | None, *, as_json: bool, progress: Progress) -> int:
    """Check the structure of a quantized ONNX file; exit code 1 when something is wrong.

    With --data every node is run on the runtime's own integers, with and without optimizations,
    and the table tells which operators run in integer kernels and why the others do not.
    """
    for given in (file, data):
        if given is not None and not Path(given).is_file():
            what = f"the file {given} does not exist"
            raise ConfigError("FXQ740", what, fix="give the path of an ONNX file, and of its data")
    progress.step("verifying")
    from fxquant.cli import actions

    report = actions.verify(file, data)
    click.echo(report.to_json() if as_json else str(report))
    return 0 if report else FINDINGS


@main.command("profile")
@click.argument("file", metavar="MODEL.onnx")
@click.option("--data", required=True, metavar="FILE.npz", help="Inputs by name.")
@click.option(
    "--float",
    "reference",
    metavar="FLOAT.onnx",
    help="Errors against this file; default: against MODEL.onnx without its grids.",
)
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1))
@click.option(
    "--top",
    default=30,
    show_default=True,
    type=click.IntRange(0),
    help="Rows that are shown; 0: all.",
)
@_common
def profile_file(
    file: str, *, data: str, reference: str | None, top: int, rounds: int, threads: int,
    as_json: bool, progress: Progress,
) -> int:  # fmt: skip
    """Show what each operator takes in onnxruntime beside the error of what it makes.

    For deciding what to leave in floating point: slowest operators first, with the conversions
    around them, their time in the model without grids, and the error of the quantized tensor.
    """
    for given in (file, data, reference):
        if given is not None and not Path(given).is_file():
            what = f"the file {given} does not exist"
            raise ConfigError("FXQ741", what, fix="give the path of an ONNX file, and of its data")
    progress.step("measuring")
    from fxquant.cli import actions

    found = actions.profile(file, data, reference=reference, rounds=rounds, threads=threads)
    click.echo(found.to_json() if as_json else found.text(top or None))
    return 0


@main.group()
def encodings() -> None:
    """Work with encodings files."""


@encodings.command("diff")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@_common
def diff_encodings(first: str, second: str, *, as_json: bool, progress: Progress) -> int:
    """Compare two encodings files tensor by tensor; exit code 1 when they differ.

    The files may be of different versions; what one of them cannot say is not compared.
    """
    progress.step("comparing")
    from fxquant.cli import actions

    found, count = actions.compare_encodings(first, second)
    if as_json:
        click.echo(json.dumps({"differences": [d.to_dict() for d in found]}, indent=1))
    else:
        click.echo("\n".join([*map(str, found), f"{len(found)} of {count} tensors differ"]))
    return FINDINGS if found else 0


def _check_example(options: dict[str, Any]) -> None:
    """Example inputs come from one place."""
    if (options["data"] is None) == (not options["shapes"]):
        what = "example inputs come from one place: either --data or --input-shape"
        raise ConfigError("FXQ731", what, fix="add one of them, such as --input-shape 1,3,224,224")
    _check_batch_size(options["data"])


def _check_batch_size(data: str | None) -> None:
    """Only arrays are cut into batches."""
    if _is_given("batch_size") and (data is None or Path(data).suffix not in (".npy", ".npz")):
        source = "--input-shape makes one batch" if data is None else f"{data} yields batches"
        raise ConfigError("FXQ732", f"--batch-size changes nothing: {source}", fix="leave it out")


def _fail(plain: dict[str, Any], text: str, *, as_json: bool, debug: bool) -> None:
    if debug:
        click.echo(traceback.format_exc(), err=True)
    if as_json:
        click.echo(json.dumps(plain))
    else:
        click.echo(f"error: {text}", err=True)
