"""The `fxquant` command: the group, the options that commands share, errors and exit codes.

Exit codes: 0 all is well; 1 the model breaks guidelines, cannot be quantized, loses more than
--accuracy-drop, or the proof failed;
2 the command line, or a file it names, cannot be used.

The commands are in `fxquant.cli.commands`, a file for each family. They are what a command line
may say; `fxquant.cli.actions` is what is done then. A command imports it when it runs, because it
imports torch, and `--help` and mistakes in a command line need neither.

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


def common(command: Command) -> Command:
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


def model_options(command: Command) -> Command:
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


def sim_options(command: Command) -> Command:
    """Add --config and --target."""
    for option in (
        click.option("--target", default="onnxruntime_x86", show_default=True, metavar="NAME"),
        click.option("--config", metavar="FILE", help="Configuration, JSON; AIMET's too."),
    ):
        command = option(command)
    return command


def is_given(option: str) -> bool:
    """Whether an option stands on the command line."""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


def check_example(options: dict[str, Any]) -> None:
    """Example inputs come from one place."""
    if (options["data"] is None) == (not options["shapes"]):
        what = "example inputs come from one place: either --data or --input-shape"
        raise ConfigError("FXQ731", what, fix="add one of them, such as --input-shape 1,3,224,224")
    check_batch_size(options["data"])


def check_batch_size(data: str | None) -> None:
    """Only arrays are cut into batches."""
    if is_given("batch_size") and (data is None or Path(data).suffix not in (".npy", ".npz")):
        source = "--input-shape makes one batch" if data is None else f"{data} yields batches"
        raise ConfigError("FXQ732", f"--batch-size changes nothing: {source}", fix="leave it out")


def _fail(plain: dict[str, Any], text: str, *, as_json: bool, debug: bool) -> None:
    if debug:
        click.echo(traceback.format_exc(), err=True)
    if as_json:
        click.echo(json.dumps(plain))
    else:
        click.echo(f"error: {text}", err=True)
