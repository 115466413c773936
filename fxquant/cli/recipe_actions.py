"""Runs of recipes: again, with some settings changed, and as a check of what was written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fxquant.cli.progress import Progress
from fxquant.cli.quantizing import HandedIn, Outcome, as_search, carry_out
from fxquant.errors import ConfigError, nearest
from fxquant.io.text_tables import table
from fxquant.io.writing import as_path
from fxquant.records.recipe_schema import Override, Recipe, Settings, in_folder
from fxquant.records.recording import changed_files
from fxquant.records.versions import differing, environment

if TYPE_CHECKING:
    from torch import nn

_SHORT = 12  # digits of a digest that tell files apart for people


@dataclass(frozen=True)
class RecipeRun:
    """A recipe that was run again.

    Attributes:
        outcome: what it wrote.
        overridden: settings that were replaced, by name.
        notes: what was not as the recipe says: files that have changed since, another environment.
    """

    outcome: Outcome
    overridden: Mapping[str, Override]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        found = {name: o.model_dump(mode="json") for name, o in self.overridden.items()}
        return {**self.outcome.to_dict(), "overridden": found, "notes": list(self.notes)}

    def __str__(self) -> str:
        lines = [
            f"{name}: {_said(o.given)} was given; the recipe has {_said(o.recipe)}"
            for name, o in self.overridden.items()
        ]
        return "\n".join([*lines, *self.notes, *([""] if lines or self.notes else []),
                          str(self.outcome)])  # fmt: skip


@dataclass(frozen=True)
class FileRow:
    """One file of an artifact: the digest that was recorded, and the one found now."""

    name: str
    recorded: str
    found: str

    @property
    def same(self) -> bool:
        """Whether the bytes agree."""
        return self.recorded == self.found


@dataclass(frozen=True)
class Replay:
    """What came of a recipe that was run as a check.

    Attributes:
        files: the files of the artifact.
        environment: what is not as it was then, and what it was and is.
        inputs: what the run was made with and is not the same: files, network, data.
        decided: what was chosen otherwise.
    """

    files: tuple[FileRow, ...]
    environment: Mapping[str, tuple[str, str]]
    inputs: tuple[str, ...] = ()
    decided: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether all bytes agree."""
        return bool(self.files) and all(row.same for row in self.files)

    def __bool__(self) -> bool:
        return self.same

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "same": self.same,
            "files": [{**vars(row), "same": row.same} for row in self.files],
            "environment": {k: list(v) for k, v in self.environment.items()},
            "inputs": list(self.inputs), "decided": list(self.decided),
        }  # fmt: skip

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(self.to_dict(), indent=1)

    def __str__(self) -> str:
        lines = [f"{k}: {a or 'not'} recorded, {b or 'none'} here"
                 for k, (a, b) in self.environment.items()]  # fmt: skip
        lines += [*self.inputs, *self.decided]
        rows = [
            (r.name, r.recorded[:_SHORT], r.found[:_SHORT], "same" if r.same else "DIFFERS")
            for r in self.files
        ]
        if rows:
            lines += [table(("file", "recorded", "now", ""), rows)]
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        if not self.files:
            return "not run: what the recipe was made with has changed"
        if self.same:
            also = "; the environment does not" if self.environment else ""
            return f"the bytes of all {len(self.files)} files agree{also}"
        count = sum(not row.same for row in self.files)
        why = "the environment, too" if self.environment else "in the same environment"
        return f"{count} of {len(self.files)} files differ, {why}"


def run_recipe(
    path: str | Path,
    *,
    out: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
    data: Any = None,
    evaluate: Any = None,
    dummy_input: Any = None,
    fine_tune: Any = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> RecipeRun:
    """Do again what a recipe says; a new recipe lies beside the new files.

    The code that runs is that of the functions which the recipe names, as on a command line.

    Args:
        path: the recipe.
        out: folder of the files; default: that of the recipe, whose files are replaced.
        changes: settings that take the place of the recipe's, such as `{"param_bw": 4}`; paths
            among them are relative to the current folder. The new recipe tells of them.
        model: the float model, where the recipe names none, or instead of it.
        data: calibration data, the same.
        evaluate: measure of a model, the same.
        dummy_input: inputs to record the model with; default: the first batch.
        fine_tune: trains a simulation, where the run from Python had such a function.
        options: options of techniques that a file cannot name.
        progress: is told every step.

    Raises:
        ConfigError: FXQ774 or FXQ775, the recipe cannot be read; FXQ776, something is neither named
            nor handed in; FXQ777, a change is no setting.
    """
    file = as_path(path, "the recipe")
    recipe = Recipe.load(file)
    given = HandedIn(model, data, evaluate, dummy_input, fine_tune, options or {})
    _require_handed(recipe, given, changes or {})
    settings, overridden = _changed(in_folder(recipe.settings, file.parent), changes or {})
    notes = (
        *_file_notes(recipe, file.parent), *_environment_notes(recipe),
        *_example_notes(recipe, given),
    )  # fmt: skip
    home = file.parent if out is None else as_path(out, "out")
    outcome = carry_out(
        settings, home, progress or Progress(quiet=True), handed=given, overridden=overridden
    )
    return RecipeRun(outcome, overridden, notes)


def replay(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    evaluate: Any = None,
    dummy_input: Any = None,
    fine_tune: Any = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Replay:
    """Run a recipe in a folder that is removed again, and compare the bytes with those recorded.

    Nothing is run where a file that it was made with has changed: the result says which.

    Args:
        path: the recipe.
        model: as for `run_recipe`.
        data: as for `run_recipe`.
        evaluate: as for `run_recipe`.
        dummy_input: as for `run_recipe`.
        fine_tune: as for `run_recipe`.
        options: as for `run_recipe`.
        progress: is told every step.

    Returns:
        What agrees and what does not; truthy when all bytes agree.

    Raises:
        ConfigError: as for `run_recipe`.
    """
    file = as_path(path, "the recipe")
    recipe = Recipe.load(file)
    given = HandedIn(model, data, evaluate, dummy_input, fine_tune, options or {})
    _require_handed(recipe, given, {})
    other = differing(recipe.environment, environment())
    changed = _file_notes(recipe, file.parent)
    if changed:
        return Replay((), other, changed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        outcome = carry_out(
            in_folder(recipe.settings, file.parent), folder,
            progress or Progress(quiet=True), handed=given, measure=False,
            # the clock decides no more: as many are tried as there was time for
            trials=_trials(recipe),
        )  # fmt: skip
        again = Recipe.load(outcome.recipe)
    was, now = recipe.artifact.files, again.artifact.files
    names = dict.fromkeys((*was, *now))
    rows = tuple(FileRow(n, was.get(n, ""), now.get(n, "")) for n in names)
    inputs = (*_example_notes(recipe, given), *_input_notes(recipe, again))
    return Replay(rows, other, inputs, _decision_notes(recipe, again))


def _trials(recipe: Recipe) -> int | None:
    return len(recipe.decided.trials) if recipe.settings.max_seconds is not None else None


def _require_handed(recipe: Recipe, given: HandedIn, changes: Mapping[str, Any]) -> None:
    """What only Python could hand in, and neither it nor a flag does now."""
    for name in recipe.inputs.handed_in:
        kind, _, technique = name.partition(".")
        if kind == "options":
            there = technique in given.options
        elif name in ("evaluate", "fine_tune"):
            there = getattr(given, name) is not None or name in changes
        else:  # the others are asked for where they are used, or the first batch will do
            continue
        if not there:
            what = f"the run was handed {name} by Python, which no file can name"
            fix = f"call fxquant.recipe.run_recipe(..., {kind}=...)"
            raise ConfigError("FXQ778", what, fix=fix)


def _changed(
    settings: Settings, changes: Mapping[str, Any]
) -> tuple[Settings, dict[str, Override]]:
    for name in changes:
        if name not in Settings.model_fields:
            known = ", ".join(Settings.model_fields)
            fix = nearest(name, Settings.model_fields) or f"settings are {known}"
            raise ConfigError("FXQ777", f"there is no setting {name!r}", fix=fix)
    overridden = {
        name: Override(recipe=value, given=changes[name])
        for name, value in settings
        if name in changes and changes[name] != value
    }
    try:
        changed = Settings.model_validate({**dict(settings), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        fix = "write what docs/recipes.md says of it"
        raise ConfigError("FXQ777", what, fix=fix) from error
    searched = {"techniques", "evaluate", "image_folder", "accuracy_drop"} & overridden.keys()
    return as_search(changed) if searched else changed, overridden


def _file_notes(recipe: Recipe, folder: Path) -> tuple[str, ...]:
    return tuple(
        f"{name}: the file is {'missing' if state == 'missing' else 'not the one recorded'}"
        for name, state in changed_files(recipe, folder).items()
    )


def _example_notes(recipe: Recipe, given: HandedIn) -> tuple[str, ...]:
    if "dummy_input" not in recipe.inputs.handed_in or given.dummy_input is not None:
        return ()
    return ("dummy_input: was handed in by Python; the first batch takes its place",)


def _environment_notes(recipe: Recipe) -> tuple[str, ...]:
    pairs = differing(recipe.environment, environment()).items()
    return tuple(f"{k}: {a or 'not'} recorded, {b or 'none'} here" for k, (a, b) in pairs)


def _input_notes(was: Recipe, now: Recipe) -> tuple[str, ...]:
    pairs = {
        "the network's operators": (was.inputs.network.graph, now.inputs.network.graph),
        "the network's weights": (was.inputs.network.weights, now.inputs.network.weights),
        "the data": (was.inputs.data.digest, now.inputs.data.digest),
    }
    return tuple(f"{name}: not the same as recorded" for name, (a, b) in pairs.items() if a != b)


def _decision_notes(was: Recipe, now: Recipe) -> tuple[str, ...]:
    old, new = was.decided.model_dump(), now.decided.model_dump()
    return tuple(
        f"{name}: {_said(old[name])} recorded, {_said(new[name])} now"
        for name in old
        if old[name] != new[name] and name != "trials"
    )


def _said(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)
