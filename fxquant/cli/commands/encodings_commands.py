"""`fxquant encodings`: files of encodings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from fxquant.cli.command import FINDINGS, common, main, show

if TYPE_CHECKING:
    from fxquant.cli.progress import Progress


@main.group()
def encodings() -> None:
    """Work with encodings files."""


@encodings.command("diff")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@common
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
        show("\n".join([*map(str, found), f"{len(found)} of {count} tensors differ"]))
    return FINDINGS if found else 0
