"""Writing a recipe: it becomes one of the files of the export that it is of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxquant.records.named_files import file_of, relative, sha256_of
from fxquant.records.recipe_schema import (
    NAMED,
    SUFFIX,
    Artifact,
    Data,
    Decided,
    Inputs,
    Network,
    Override,
    Recipe,
    Settings,
)
from fxquant.records.versions import environment


@dataclass(frozen=True)
class Sources:
    """How what is handed to `fxquant.quantize` is named on a command line.

    With them `fxquant run` does a run from Python again; without them it needs them as flags.

    Attributes:
        network: `path.py:function` or `package.module:function` that returns the network.
        weights: file of its weights.
        calibration: `.npy`, `.npz` or `path.py:function` of the data.
        image_folder: images as data, in place of `calibration`.
        preprocess: of images: "imagenet" or `path.py:function`.
        inputs: keys of the inputs in a data file.
        batch_size: rows in a batch of a data file.
        max_batches: batches that are calibrated with; None: all.
        evaluate: labelled `.npz` or function, as `--evaluate` names it.
        labels: the array with the labels.
        overridden: settings of an older recipe that flags have replaced.
    """

    network: str | None = None
    weights: str | None = None
    calibration: str | None = None
    image_folder: str | None = None
    preprocess: str | None = None
    inputs: tuple[str, ...] = ()
    batch_size: int = 32
    max_batches: int | None = None
    evaluate: str | None = None
    labels: str | None = None
    overridden: Mapping[str, Override] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """The part of the settings that they are."""
        found = {k: v for k, v in vars(self).items() if k != "overridden"}
        return found | {"inputs": list(self.inputs)}


@dataclass(frozen=True)
class Recording:
    """All of a recipe but the files, which are not yet there.

    Attributes:
        settings: with paths as this process uses them.
        network: the float model.
        data: the calibration data.
        decided: what was chosen.
        handed_in: what a call from Python was given that no file names.
        overridden: settings of an older recipe that flags have replaced.
    """

    settings: Settings
    network: Network
    data: Data
    decided: Decided
    handed_in: tuple[str, ...] = ()
    overridden: Mapping[str, Override] = field(default_factory=dict)

    def companion(self, home: Path) -> Callable[[Path], object]:
        """What writes the recipe into a folder with the finished files.

        Args:
            home: the folder that these files are moved to.
        """

        def write(work: Path) -> None:
            # of the report only its durations would differ
            files = sorted(p for p in work.iterdir() if not p.name.endswith(".report.json"))
            artifact = Artifact(files={p.name: sha256_of(p) for p in files})
            text = self._recipe(home, artifact).to_yaml()
            (work / f"{self.settings.prefix}{SUFFIX}").write_text(text, encoding="utf-8")

        return write

    def _recipe(self, home: Path, artifact: Artifact) -> Recipe:
        given = dict(self.settings)
        named = {name: given[name] for name in NAMED if given[name] is not None}
        given |= {name: relative(spec, home) for name, spec in named.items()}
        inputs = Inputs(
            network=self.network, data=self.data, files=_digests(named, home),
            handed_in=list(self.handed_in),
        )  # fmt: skip
        return Recipe(
            # whoever used the values has accepted them; numbers of numpy become Python's
            settings=Settings.model_validate(given, strict=False),
            overridden={n: _shortened(n, o, home) for n, o in self.overridden.items()},
            inputs=inputs, decided=self.decided, environment=environment(), artifact=artifact,
        )  # fmt: skip


def _shortened(name: str, override: Override, home: Path) -> Override:
    if name not in NAMED:
        return override
    pair = {"recipe": override.recipe, "given": override.given}
    return Override(**{k: v and relative(v, home) for k, v in pair.items()})


def _digests(named: Mapping[str, str], home: Path) -> dict[str, str]:
    """SHA-256 of files and of those with functions, by their names in the recipe."""
    files = {p for spec in named.values() if (p := file_of(spec)) is not None}
    return dict(sorted((relative(str(p), home), sha256_of(p)) for p in files))


def changed_files(recipe: Recipe, folder: Path) -> dict[str, str]:
    """What became of the files that a recipe was made with: "changed" or "missing", by name."""
    found = {}
    for name, digest in recipe.inputs.files.items():
        path = folder / name
        if not path.is_file():
            found[name] = "missing"
        elif sha256_of(path) != digest:
            found[name] = "changed"
    return found
