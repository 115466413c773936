"""`fxquant run`, `fxquant replay` and `fxquant diff`: what was done, again and compared."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import click

from fxquant.cli.command import FINDINGS, common, is_given, main, show
from fxquant.cli.commands.quantize_command import quantize

if TYPE_CHECKING:
    from typing import TypeVar

    from fxquant.cli.progress import Progress

    Command = TypeVar("Command", bound=click.Command)

# what an option of `quantize` is called among the settings, where that is another name
_SETTINGS = {"evaluation": "evaluate", "on": "evaluate_on", "no_proof": "prove"}


def _options_of_quantize(command: Command) -> Command:
    """Add the options of `quantize`: none is needed, and those that are given take effect."""
    for option in quantize.params:
        if isinstance(option, click.Option) and option.name not in ("out", *_own(command)):
            again = copy.copy(option)
            again.required, again.show_default = False, False  # the recipe has the values
            again.help = again.help or "Instead of the recipe's."
            command.params.append(again)
    return command


def _own(command: click.Command) -> set[str]:
    return {str(option.name) for option in command.params}


@_options_of_quantize
@main.command("run", short_help="Do again what a recipe says.")
@click.argument("recipe", metavar="RECIPE.yaml")
@click.option("--out", metavar="DIR", help="Folder of the results; default: the recipe's.")
@click.option("--network", metavar="FACTORY", help="The network, instead of the recipe's.")
@click.option("--seed", type=int, help="Of everything that is drawn.")
@common
def run_again(
    recipe: str, *, out: str | None, as_json: bool, progress: Progress, **options: Any
) -> int:
    """Do again what a recipe says, with the options that are given instead of its own.

    What was replaced stands in the output and in the recipe of the new files.
    """
    from fxquant.cli import recipe_actions

    found = recipe_actions.run_recipe(recipe, out=out, changes=_changes(options), progress=progress)
    _echo(json.dumps(found.to_dict(), indent=1), str(found), as_json)
    return 0 if found.outcome.met else FINDINGS


@main.command("replay", short_help="Run a recipe again and compare the bytes.")
@click.argument("recipe", metavar="RECIPE.yaml")
@common
def replay_recipe(recipe: str, *, as_json: bool, progress: Progress) -> int:
    """Run a recipe again and compare; exit code 1 when a byte of the files differs.

    The files that the recipe lies beside are neither read nor changed. When versions or the CPU are
    not those recorded, the output says so, and whether the bytes agree all the same. Nothing is run
    when a file that the recipe names has changed.
    """
    from fxquant.cli import recipe_actions

    found = recipe_actions.replay(recipe, progress=progress)
    _echo(found.to_json(), str(found), as_json)
    return 0 if found else FINDINGS


def _echo(plain: str, text: str, as_json: bool) -> None:
    if as_json:
        click.echo(plain)
    else:
        show(text)


def _changes(options: dict[str, Any]) -> dict[str, Any]:
    """The options that stand on the command line, as settings."""
    given = {name: value for name, value in options.items() if is_given(name)}
    found = {_SETTINGS.get(name, name): value for name, value in given.items()}
    if "prove" in found:
        found["prove"] = not found["prove"]
    if found.pop("standard", False):
        found["contrib"] = False
    for one, other in (("calibration", "image_folder"), ("image_folder", "calibration")):
        if one in found:  # data come from one place
            found.setdefault(other, None)
    if "inputs" in found:
        found["inputs"] = list(found["inputs"])
    if (named := found.get("techniques")) not in (None, "auto", "none"):
        found["techniques"] = named.split(",")
    if "config" in found or "target" in found:
        from fxquant.auto.recorded_request import plain_config, plain_target

        for name, plain in (("config", plain_config), ("target", plain_target)):
            found |= plain(found[name]) if name in found else {}
    return found


@main.command("diff", short_help="Compare two artifacts.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--top", default=30, show_default=True, type=click.IntRange(0),
    help="Rows that are shown; 0: all.",
)  # fmt: skip
@common
def diff_two(first: str, second: str, *, top: int, as_json: bool, progress: Progress) -> int:
    """Compare two artifacts; exit code 1 when they differ.

    A and B are .onnx files, encodings files, recipes or folders of exports. Shown are scales, bits,
    zero points, Q/DQ that were added or removed, values of weights, and how much more noise of
    rounding is to be expected.
    """
    progress.step("comparing")
    from fxquant.comparison import diff_artifacts

    found = diff_artifacts(first, second)
    _echo(found.to_json(), found.text(top or None), as_json)
    return FINDINGS if found else 0
