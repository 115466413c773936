"""`fxquant verify` and `fxquant profile`: ONNX files of any tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fxquant.cli.command import FINDINGS, common, main, show
from fxquant.errors import ConfigError

if TYPE_CHECKING:
    from fxquant.cli.progress import Progress


@main.command(short_help="Check a quantized ONNX file.")
@click.argument("file", metavar="MODEL.onnx")
@click.option(
    "--data", metavar="FILE.npz",
    help="Inputs by name: also runs the model in onnxruntime and in the integer executor.",
)  # fmt: skip
@common
def verify(file: str, data: str | None, *, as_json: bool, progress: Progress) -> int:
    """Check the structure of a quantized ONNX file; exit code 1 when something is wrong.

    With --data every node is run on the runtime's own integers, with and without optimizations,
    and the table tells which operators run in integer kernels and why the others do not.
    """
    _require_files(file, data)
    progress.step("verifying")
    from fxquant.cli import actions

    report = actions.verify(file, data)
    click.echo(report.to_json()) if as_json else show(str(report))
    return 0 if report else FINDINGS


@main.command("profile", short_help="Show time and error of each operator.")
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
@common
def profile_file(
    file: str, *, data: str, reference: str | None, top: int, rounds: int, threads: int,
    as_json: bool, progress: Progress,
) -> int:  # fmt: skip
    """Show what each operator takes in onnxruntime beside the error of what it makes.

    For deciding what to leave in floating point: slowest operators first, with the conversions
    around them, their time in the model without grids, and the error of the quantized tensor.
    """
    _require_files(file, data, reference)
    progress.step("measuring")
    from fxquant.cli import actions

    found = actions.profile(file, data, reference=reference, rounds=rounds, threads=threads)
    click.echo(found.to_json()) if as_json else show(found.text(top or None))
    return 0


def _require_files(*given: str | None) -> None:
    """Raise FXQ740 where a path is no file."""
    for path in given:
        if path is not None and not Path(path).is_file():
            what = f"there is no file to look into: {path} {_absence(path)}"
            raise ConfigError("FXQ740", what, fix="give the path of an ONNX file, and of its data")


def _absence(path: str) -> str:
    return "is a folder" if Path(path).is_dir() else "does not exist"
