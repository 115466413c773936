"""The `fxquant` command: the group, the options that commands share, errors and exit codes.

Exit codes: 0 all is well; 1 the model cannot be quantized, loses more than --accuracy-drop, the
proof failed, or things that are compared differ; 2 the command line, or a file it names, cannot be
used.

The commands are in `fxquant.cli.commands`, a file for each family. They are what a command line
may say; `fxquant.cli.actions` is what is done then. A command imports it when it runs, because it
imports torch, and `--help` and mistakes in a command line need neither.

With ``--json`` the result, or the error, is the only thing on standard output. Progress and tables
of progress go to standard error.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fxquant._version import __version__
from fxquant.cli import shipped
from fxquant.cli.data_request import DataRequest
from fxquant.cli.progress import Progress
from fxquant.errors import CheckpointError, ConfigError, FxQuantError
from fxquant.io import text_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Command = TypeVar("Command", bound=Callable[..., Any])

FINDINGS, USAGE = 1, 2

# written out: what knows them imports torch, which `--help` does without
SCHEMES = (
    "min_max", "tf_enhanced", "percentile", "mse", "entropy", "moving_average",
    "range_learning_tf", "range_learning_tf_enhanced", "tf",
)  # fmt: skip
DEPLOYMENTS = ("any", "vnni", "avx2", "arm")
FORMS = ("sim", "integer", "onnxruntime")
_NARROWEST = 60  # columns
_UNREADABLE = ("FXQ511", "FXQ570", "FXQ751")  # ONNX files, among the errors of exports


class Commands(click.Group):
    """The group; with --json also mistakes in the command line are told as JSON."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run a command line; see `click.Command.main`."""
        given = list(sys.argv[1:] if args is None else args)
        if "--json" not in given or not options.get("standalone_mode", True):
            return super().main(args, *rest, **options)
        try:
            code = super().main(args, *rest, **options | {"standalone_mode": False})
        except click.ClickException as error:
            plain = {"error": type(error).__name__, "code": None, "what": error.format_message()}
            click.echo(json.dumps(plain))
            code = USAGE
        except click.Abort:
            code = FINDINGS
        raise SystemExit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fxquant")
def main() -> None:
    """Quantize PyTorch networks and prove the integer ONNX against onnxruntime.

    FACTORY names the network:

    \b
      path.py:function, package.module:function
          a function without arguments that returns it
      timm:NAME, torchvision:NAME, hf:FOLDER
          a network of these packages; --weights FILE gives it weights,
          nothing is downloaded

    DATA are .npy, .npz, or path.py:function that yields batches: a tensor, a tuple of tensors or a
    dict; labels beside the inputs are left out. --input chooses among the arrays of a file.

    Exit codes: 0 all is well; 1 the network cannot be quantized, loses more than --accuracy-drop,
    fails the proof, or things differ; 2 the command line, or a file it names, cannot be used.
    """


def common(command: Command) -> Command:
    """Add --json, --quiet, --verbose and --debug; turn errors into text and exit codes."""

    @functools.wraps(command)
    def run(
        *args: Any, as_json: bool, debug: bool, quiet: bool, verbose: bool, **options: Any
    ) -> None:
        if quiet and verbose:
            contradiction = "--quiet and --verbose contradict each other"
            raise click.UsageError(contradiction)
        progress = Progress(quiet=quiet, verbose=verbose)
        try:
            with progress, warnings.catch_warnings(), text_tables.fitting(_columns()):
                warnings.showwarning = progress.warn
                code = command(*args, as_json=as_json, progress=progress, **options)
        except FxQuantError as error:
            _fail(error.to_dict(), str(error), as_json=as_json, debug=debug)
            code = USAGE if _is_usage(error) else FINDINGS
        except Exception as error:  # the outermost face: a user sees a message, not a traceback
            what = f"{type(error).__name__}: {error}"
            plain = {"error": type(error).__name__, "code": None, "what": str(error)}
            hint = "" if debug else "\n  this was not expected; --debug shows where it happened"
            _fail(plain, what + hint, as_json=as_json, debug=debug)
            code = FINDINGS
        click.get_current_context().exit(code)

    for option in (
        click.option("--debug", is_flag=True, help="Show tracebacks of errors."),
        click.option("--verbose", "-v", is_flag=True, help="More progress: times, decisions."),
        click.option("--quiet", "-q", is_flag=True, help="No progress."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output."),
    ):
        run = option(run)
    return run  # type: ignore[return-value]


def weights_option(command: Command) -> Command:
    """Add --weights."""
    return click.option(
        "--weights", metavar="FILE",
        help="State dict or checkpoint: .safetensors, .pt or .pth; no pickle is run.",
    )(command)  # fmt: skip


def scheme_option(command: Command) -> Command:
    """Add --scheme."""
    return click.option(
        "--scheme", default="tf_enhanced", show_default=True, metavar="NAME",
        type=click.Choice(SCHEMES), help=f"How ranges are found: {', '.join(SCHEMES)}.",
    )(command)  # fmt: skip


def data_options(command: Command) -> Command:
    """Add --input, --image-folder, --preprocess and --batch-size: what goes with data."""
    for option in (
        click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1)),
        click.option(
            "--preprocess", metavar="imagenet|FILE.py:FUNCTION",
            help="From an image of --image-folder to a tensor [C, H, W]; default: imagenet.",
        ),
        click.option(
            "--image-folder", metavar="DIR", help="Images as data, a folder for each class."
        ),
        click.option(
            "--input", "inputs", multiple=True, metavar="KEY",
            help="Array that is an input, or ARGUMENT=KEY; once for each input.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def model_options(command: Command) -> Command:
    """Add FACTORY, --weights and the ways to give example inputs."""
    for option in (
        data_options,
        click.option(
            "--input-shape",
            "shapes",
            multiple=True,
            metavar="N,C,H,W",
            help="Random input of this shape; once for each input.",
        ),
        click.option("--data", metavar="DATA", help=".npy, .npz or path.py:function."),
        weights_option,
        click.argument("factory"),
    ):
        command = option(command)
    return command


def sim_options(command: Command) -> Command:
    """Add --config and --target."""
    for option in (
        click.option(
            "--target", default=shipped.DEFAULT_TARGET, show_default=True, metavar="NAME",
            shell_complete=_completed(shipped.targets),
            help=f"What computes integers: {', '.join(shipped.targets())}; see fxquant targets.",
        ),
        click.option(
            "--config", metavar="FILE|NAME", shell_complete=_completed(shipped.presets),
            help=f"Configuration: JSON, AIMET's too, or {', '.join(shipped.presets())}; "
            "see fxquant presets.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _completed(names: Callable[[], tuple[str, ...]]) -> Callable[..., list[str]]:
    return lambda ctx, param, incomplete: [n for n in names() if n.startswith(incomplete)]


def is_given(option: str) -> bool:
    """Whether an option stands on the command line."""
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


def take_data(options: dict[str, Any], name: str) -> DataRequest:
    """Take what is about data out of a command's options.

    Raises:
        ConfigError: see `DataRequest.take`.
    """
    return DataRequest.take(options, name, sized=is_given("batch_size"))


def default_prefix(factory: str) -> str:
    """What files are called after: the function, or the name of the network."""
    return Path(factory.rpartition(":")[2]).name


def show(text: str) -> None:
    """Print a text for people: no line is wider than the terminal, no word is cut."""
    click.echo(text_tables.wrapped(text, _columns()))


def _columns() -> int:
    """The width of lines; 80 where nobody knows."""
    return max(_NARROWEST, shutil.get_terminal_size(fallback=(80, 24)).columns)


def _is_usage(error: FxQuantError) -> bool:
    """Whether the command line is wrong, or a file that it names: encodings, shards, ONNX."""
    return isinstance(error, (ConfigError, CheckpointError)) or error.code in _UNREADABLE


def _fail(plain: dict[str, Any], text: str, *, as_json: bool, debug: bool) -> None:
    if debug:
        click.echo(traceback.format_exc(), err=True)
    if as_json:
        click.echo(json.dumps(plain))
    else:
        # lines of a log stay whole
        text = f"error: {text}"
        folded = text_tables.wrapped(text, _columns()) if sys.stderr.isatty() else text
        click.echo(folded, err=True)
