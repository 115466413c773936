"""`fxquant targets`, `fxquant presets` and `fxquant completion`: what there is to choose from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import ShellComplete, get_completion_class

from fxquant.cli import shipped
from fxquant.cli.command import common, main, show
from fxquant.io.text_tables import table

if TYPE_CHECKING:
    from fxquant.cli.progress import Progress

_SHELLS = ("bash", "zsh", "fish")


@main.command(short_help="List the runtimes and chips of --target.")
@common
def targets(*, as_json: bool, progress: Progress) -> int:
    """List the targets of --target: runtimes and chips, and what they compute on integers."""
    rows = [shipped.content("targets", name) for name in shipped.targets()]
    if as_json:
        keys = ("name", "description", "aliases", "scale", "activation", "weight", "deploy")
        plain = [
            {key: row[key] for key in keys if key in row} | {"operators": sorted(row["operators"])}
            for row in rows
        ]
        click.echo(json.dumps({"targets": plain}, indent=1))
        return 0
    for row in rows:
        default = " (the default)" if row["name"] == shipped.DEFAULT_TARGET else ""
        show(f"{row['name']}{default}\n  {_types(row)}\n  {row['description']}\n")
    show("Another target is another JSON file: Target.model_validate_json in Python.")
    return 0


@main.command(short_help="List the configurations of --config.")
@common
def presets(*, as_json: bool, progress: Progress) -> int:
    """List the presets of --config: configurations by name."""
    rows = [(name, shipped.content("presets", name)) for name in shipped.presets()]
    if as_json:
        plain = [
            {"name": name, "description": DESCRIPTIONS[name], "config": content}
            for name, content in rows
        ]
        click.echo(json.dumps({"presets": plain}, indent=1))
        return 0
    cells = [(name, DESCRIPTIONS[name], json.dumps(content)) for name, content in rows]
    legend = "--config takes a preset, or a JSON file with such keys"
    show(f"{table(('preset', 'description', 'configuration'), cells)}\n{legend}")
    return 0


@main.command(short_help="Print the completion of a shell.")
@click.argument("shell", type=click.Choice(_SHELLS))
@common
def completion(shell: str, *, as_json: bool, progress: Progress) -> int:
    """Print what makes a shell complete commands, options, targets and presets.

    \b
      bash  eval "$(fxquant completion bash)"         in ~/.bashrc
      zsh   eval "$(fxquant completion zsh)"          in ~/.zshrc
      fish  fxquant completion fish | source          in config.fish
    """
    kind = get_completion_class(shell) or ShellComplete
    script = kind(main, {}, "fxquant", "_FXQUANT_COMPLETE").source()
    click.echo(json.dumps({"shell": shell, "script": script}) if as_json else script)
    return 0


# what the presets are; their files hold settings alone
DESCRIPTIONS = {
    "default": "what the target says; the same as no --config",
    "integer_outputs": "outputs of the network are quantized, too",
    "per_channel": "weights have a scale for each output channel, symmetric around zero",
    "per_tensor": "weights have one scale for the whole tensor, symmetric around zero",
    "reduce_range": "weights of 7 bits: sums of x86 CPUs without VNNI cannot saturate",
}


def _types(target: dict[str, Any]) -> str:
    activation, weight = target["activation"], target["weight"]
    scales = ", scales are powers of two" if target.get("scale") == "power_of_two" else ""
    each = " per channel" if weight.get("per_channel") else ""
    types = f"{_type(activation)} activations, {_type(weight)} weights{each}{scales}"
    return f"{types}; rules for {len(target['operators'])} operators"


def _type(values: dict[str, Any]) -> str:
    return f"{'int' if values['signed'] else 'uint'}{values['bitwidth']}"
