"""`Recipe`: everything that one run decided, as one YAML file beside what it wrote.

`settings` is all that a run asks for and can be edited; the rest tells what the run was made with
and what came of it: `inputs` and `environment` as checksums and versions, `decided` as what was
chosen, `artifact` as the SHA-256 of the files. Two equal runs write equal recipes: there is no
time, no duration, and no name of the machine in them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fxquant.errors import ConfigError, nearest
from fxquant.io.reading import Refused, reason
from fxquant.io.writing import as_path, require_whole, write_text
from fxquant.io.yaml_files import NotYamlError, Place, YamlText, read_yaml, yaml_text
from fxquant.records.named_files import absolute

FORMAT: Literal[1] = 1
# settings that name files
NAMED = ("network", "weights", "calibration", "image_folder", "preprocess", "evaluate")
SUFFIX = ".recipe.yaml"
_HEAD = "# `fxquant run` does this again, `fxquant replay` checks that it gives the same files.\n"

Text = str | None
Number = int | float


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Settings(_Strict):
    """What a run asks for. Paths are relative to the folder of the recipe.

    Attributes:
        network: as on the command line: `path.py:function`, `package.module:function`, or that of
            another package; None: handed in by Python.
        weights: file of a state dict.
        calibration: data, as on the command line; None: handed in by Python.
        image_folder: images as data, in place of `calibration`.
        preprocess: of images: "imagenet" or `path.py:function`.
        inputs: keys of the inputs in a data file.
        batch_size: rows in a batch of a data file.
        max_batches: batches that are calibrated with; None: all.
        evaluate: what `--evaluate` names; None: nothing, or handed in by Python.
        labels: the array with the labels.
        prefix: how the files are called.
        target: name of a shipped target, or all of another one.
        config: fields of `QuantConfig`.
        lenient: the configuration was read from another tool's file, whose rules may be idle.
        scheme: how ranges are found; None: more than one way is tried.
        first_scheme: how they are found at first where `scheme` is None.
        param_bw: bits of weights.
        activation_bw: bits of activations.
        techniques: "auto", "none" or names; None: calibrate and export, nothing is scored.
        options: options of techniques by name.
        accuracy_drop: how much the score may lose.
        evaluate_on: what `evaluate` is given: "sim", "integer" or "onnxruntime".
        max_seconds: on the clock, after which no technique is begun.
        strict: an error of a technique that was named ends the run.
        seed: of everything that is drawn.
        opset: ONNX opset.
        prove: compare with onnxruntime.
        contrib: operators of onnxruntime's own; None: what the target says.
        deploy: CPUs that the file is written for; None: what configuration or target say.
    """

    network: Text = None
    weights: Text = None
    calibration: Text = None
    image_folder: Text = None
    preprocess: Text = None
    inputs: list[str] = Field(default_factory=list)
    batch_size: int = Field(32, ge=1)
    max_batches: int | None = Field(None, ge=1)
    evaluate: Text = None
    labels: Text = None
    prefix: str = "model"
    target: str | dict[str, Any] = "onnxruntime_x86"
    config: dict[str, Any] = Field(default_factory=dict)
    lenient: bool = False
    scheme: Text = None
    first_scheme: str = "tf_enhanced"
    param_bw: int | None = None
    activation_bw: int | None = None
    techniques: Literal["auto", "none"] | list[str] | None = None
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    accuracy_drop: float | None = Field(None, ge=0, allow_inf_nan=False)
    evaluate_on: Literal["sim", "integer", "onnxruntime"] = "sim"
    max_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    strict: bool = True
    seed: int = Field(0, ge=-(2**63), lt=2**64)  # what torch takes
    opset: int = Field(21, ge=13, le=23)
    prove: bool = True
    contrib: bool | None = None
    deploy: Literal["any", "vnni", "avx2", "arm"] | None = None


class Network(_Strict):
    """The float model as it was recorded.

    Attributes:
        graph: SHA-256 of the operators and how they are connected.
        weights: SHA-256 of names, types and values of its tensors.
    """

    graph: str
    weights: str


class Data(_Strict):
    """The calibration data.

    Attributes:
        digest: of the content of all batches, in order.
        batches: their number.
        samples: rows of all of them.
    """

    digest: str
    batches: int
    samples: int


class Inputs(_Strict):
    """What the run was made with.

    Attributes:
        network: the float model.
        data: the calibration data.
        files: SHA-256 of every file that `settings` names, and of the files with its functions.
        handed_in: what a call from Python was given that no file names.
    """

    network: Network
    data: Data
    files: dict[str, str] = Field(default_factory=dict)
    handed_in: list[str] = Field(default_factory=list)


class Trial(_Strict):
    """One combination of techniques that was tried."""

    techniques: list[str]
    score: Number | None = None
    decibels: Number | None = None
    note: str = ""


class Decided(_Strict):
    """What the run chose.

    Attributes:
        scheme: how ranges are found.
        activation_bw: bits of activations where no rule says otherwise.
        param_bw: bits of weights, the same.
        deploy: CPUs that the file is written for.
        techniques: what was applied, in order.
        score: of the simulation; None where nothing was scored.
        float_score: of the float model; None where the score is in decibels.
        met: whether the score is within the drop that was allowed.
        trials: what was tried, in order.
    """

    scheme: str
    activation_bw: int
    param_bw: int
    deploy: str
    techniques: list[str] = Field(default_factory=list)
    score: Number | None = None
    float_score: Number | None = None
    met: bool = True
    trials: list[Trial] = Field(default_factory=list)


class Override(_Strict):
    """A value of an older recipe that a flag has replaced."""

    recipe: Any
    given: Any


class Artifact(_Strict):
    """SHA-256 of the files by name; not of the report, which has durations."""

    files: dict[str, str]


class Recipe(_Strict):
    """Everything that one run decided.

    Attributes:
        format: version of the schema.
        settings: what it asks for.
        overridden: settings that flags replaced when `fxquant run` made it of another recipe.
        inputs: what it was made with.
        decided: what it chose.
        environment: versions of the tools, and the CPU.
        artifact: the files that it wrote.
    """

    format: Literal[1] = FORMAT
    settings: Settings
    overridden: dict[str, Override] = Field(default_factory=dict)
    inputs: Inputs
    decided: Decided
    environment: dict[str, str]
    artifact: Artifact

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe; nothing that it names is opened or run.

        Raises:
            ConfigError: FXQ774 the file cannot be read as YAML, FXQ775 a key or a value is wrong;
                both name the line. FXQ751, it is of an export that was cut short.
        """
        file = as_path(path, "the recipe")
        require_whole(file, ConfigError)
        found = _read(file)
        try:
            return cls.model_validate(found.content)
        except ValidationError as error:
            raise _wrong(error, found, file) from error

    def save(self, path: str | Path) -> Path:
        """Write the recipe, whole or not at all.

        Raises:
            ConfigError: FXQ542 to FXQ545, the file cannot be written.
        """
        return write_text(path, self.to_yaml(), error=ConfigError)

    def to_yaml(self) -> str:
        """The text of the file."""
        return _HEAD + yaml_text(self.model_dump(mode="json"))


def in_folder(settings: Settings, folder: Path) -> Settings:
    """Settings of a recipe in a folder, with paths as this process can use them."""
    named = {name: getattr(settings, name) for name in NAMED}
    found = {k: absolute(v, folder) for k, v in named.items() if v is not None}
    return settings.model_copy(update=found)


def finite(value: float | None) -> float | None:
    """A number as recipes have it: what is infinite says nothing."""
    return value if value is not None and math.isfinite(value) else None


def _read(file: Path) -> YamlText:
    try:
        return read_yaml(file)
    except (OSError, ValueError) as error:
        line = error.line if isinstance(error, NotYamlError) else None
        said = str(error) if isinstance(error, Refused) else reason(error)
        fix = "correct it, or write it again with fxquant quantize"
        at = str(file) if line is None else f"{file}, line {line}"
        what = f"the recipe {file} cannot be read: {said}"
        raise ConfigError("FXQ774", what, at=at, fix=fix) from error


def _wrong(error: ValidationError, found: YamlText, file: Path) -> ConfigError:
    """The first mistake: where it stands, and what is known there."""
    first = error.errors()[0]
    place: Place = first["loc"]
    if first["type"] != "missing":  # names of types of a union stand behind the keys
        while place and place not in found.lines:
            place = place[:-1]
    key = ".".join(map(str, place)) or "the recipe"
    fix = "write what docs/recipes.md says of it"
    if place and first["type"] == "extra_forbidden":
        known = _keys_at(place[:-1])
        fix = nearest(str(place[-1]), known) or f"known keys: {', '.join(known)}"
    at = f"{file}, line {found.line(place)}"
    return ConfigError("FXQ775", f"{key}: {first['msg']}", at=at, fix=fix)


def _keys_at(place: Place) -> list[str]:
    model: Any = Recipe
    for step in place:
        field = model.model_fields.get(str(step))
        model = None if field is None else field.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return list(model.model_fields)
