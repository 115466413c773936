"""Commands that calibrate on parts of the data, on any machines, and merge what they have seen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from fxquant.cli.command import (
    common,
    data_options,
    default_prefix,
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

    from fxquant.cli.progress import Progress

    Command = TypeVar("Command", bound=Callable[..., Any])


def _same_options(command: Command) -> Command:
    """Add what both commands must be given alike."""
    for option in (
        data_options,
        click.option("--activation-bw", type=int, help="Bits of activations."),
        click.option("--param-bw", type=int, help="Bits of weights."),
        scheme_option,
        click.option(
            "--calibration", metavar="DATA",
            help=".npy, .npz or path.py:function; or --image-folder.",
        ),
        weights_option,
    ):  # fmt: skip
        command = option(command)
    return command


@main.command("calibrate", short_help="Calibrate on a part of the data.")
@click.argument("factory")
@click.option(
    "--shard", default="1/1", show_default=True, metavar="I/N",
    help="Every N-th batch from the I-th on.",
)  # fmt: skip
@click.option("--out", required=True, metavar="FILE", help="The shard, .safetensors.")
@_same_options
@sim_options
@common
def calibrate_shard(
    factory: str, *, shard: str, out: str, as_json: bool, progress: Progress, **options: Any
) -> int:
    """Run a part of the calibration data and write what quantizers have seen.

    `fxquant merge` makes encodings of all parts: those of one process that ran all data.
    """
    numbers = _numbers(shard)
    options["data"] = take_data(options, "calibration")
    from fxquant.cli import shard_actions

    file = shard_actions.calibrate(factory, numbers, out, progress=progress, **options)
    click.echo(json.dumps({"file": file})) if as_json else show(f"written: {file}")
    return 0


@main.command("merge", short_help="Make encodings of what parts have seen.")
@click.argument("factory")
@click.argument("shards", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DIR", help="Folder of the encodings.")
@click.option("--prefix", metavar="NAME", help="Name of the file; default: the function's name.")
@_same_options
@sim_options
@common
def merge_shards(
    factory: str, *, shards: tuple[str, ...], out: str, prefix: str | None, as_json: bool,
    progress: Progress, **options: Any,
) -> int:  # fmt: skip
    """Make encodings of the parts that `fxquant calibrate` wrote; all of them must be there.

    Options are those of the parts. Of --calibration the first batch alone is read, as the example
    that the network is recorded with.
    """
    options["data"] = take_data(options, "calibration")
    from fxquant.cli import shard_actions

    name = prefix or default_prefix(factory)
    merged, file = shard_actions.merge(factory, shards, out, name, progress=progress, **options)
    if as_json:
        click.echo(json.dumps({"file": file, "batches": merged.batches}))
    else:
        show(f"{merged}\nwritten: {file}")
    return 0


def _numbers(shard: str) -> tuple[int, int]:
    first, _, count = shard.partition("/")
    if not (first.isascii() and first.isdigit() and count.isascii() and count.isdigit()):
        raise ConfigError("FXQ736", f"{shard!r} names no shard", fix="write 1/4 to 4/4, say")
    if not 1 <= int(first) <= int(count):
        raise ConfigError("FXQ736", f"there is no shard {shard!r}", fix="count from 1/4 to 4/4")
    return int(first), int(count)
