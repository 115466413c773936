"""`EncodingsFile`: all versions of the file, read whole or refused, and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxquant._version import __version__
from fxquant.encodings import v0, v1, v2
from fxquant.encodings.entry import Entry
from fxquant.errors import CheckpointError
from fxquant.io.reading import read_json, reason
from fxquant.io.writing import as_path, require_whole

FORMATS = (*v0.VERSIONS, *v1.VERSIONS, *v2.VERSIONS)
_SECTIONS = ("activation_encodings", "param_encodings")


@dataclass(frozen=True)
class EncodingsFile:
    """The content of an encodings file.

    Attributes:
        version: one of `FORMATS`.
        activations: entries of activations; from version 2 on also those of parameters.
        params: entries of parameters.
        by_module: whether activations are named `module.output.0` and not by ONNX tensors.
        excluded: layers that stay in floating point.
        arguments: what was written of the quantizers' settings.
    """

    version: str
    activations: tuple[Entry, ...] = ()
    params: tuple[Entry, ...] = ()
    by_module: bool = False
    excluded: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries."""
        return (*self.activations, *self.params)


def read(source: str | Path | Mapping[str, Any]) -> EncodingsFile:
    """Read a file, or what was parsed from one; everything in it is checked.

    Old files have no version; the form of their sections tells it.

    Raises:
        CheckpointError: FXQ630 it cannot be read, FXQ631 unknown version, FXQ632 malformed entry.
    """
    content = source if isinstance(source, Mapping) else _parsed(as_path(source, "the encodings"))
    version = content.get("version", _guessed(content))
    if version not in FORMATS:
        what = f"encodings of version {version!r} are not known"
        raise CheckpointError("FXQ631", what, fix=f"use one of {', '.join(FORMATS)}")
    if version in v2.VERSIONS:
        return EncodingsFile(version, tuple(v2.read_entries(content.get("encodings"), "encodings")))
    first, second = (content.get(section, {} if version in v0.VERSIONS else [])
                     for section in _SECTIONS)  # fmt: skip
    by_module = version in v0.VERSIONS and isinstance(first, dict) and v0.is_by_module(first)
    if by_module:
        activations, params = list(v0.read_by_module(first)), v0.read_entries(second, _SECTIONS[1])
    else:
        one = v0.read_entries if version in v0.VERSIONS else v1.read_entries
        activations, params = (one(s, w) for s, w in zip((first, second), _SECTIONS, strict=True))
    excluded = content.get("excluded_layers", ())
    arguments = content.get("quantizer_args", {})
    return EncodingsFile(
        version, tuple(activations), tuple(params), by_module,
        tuple(str(x) for x in excluded) if isinstance(excluded, list | tuple) else (),
        arguments if isinstance(arguments, Mapping) else {},
    )  # fmt: skip


def _guessed(content: Mapping[str, Any]) -> str | None:
    """The version of a file that does not name it, or None."""
    sections = [content[s] for s in _SECTIONS if s in content]
    if sections and all(isinstance(s, dict) for s in sections):
        return v0.VERSIONS[0]
    if sections and all(isinstance(s, list) for s in sections):
        return v1.VERSIONS[0]
    return v2.VERSIONS[-1] if not sections and isinstance(content.get("encodings"), list) else None


def write(file: EncodingsFile) -> dict[str, Any]:
    """The file's content as plain data.

    Raises:
        CheckpointError: FXQ631 unknown version.
    """
    head = {"version": file.version, "producer": {"package": "fxquant", "version": __version__}}
    if file.version in v2.VERSIONS:
        return {**head, "encodings": v2.write_entries(file.entries, file.version)}
    if file.version not in FORMATS:
        what = f"encodings of version {file.version!r} cannot be written"
        raise CheckpointError("FXQ631", what, fix=f"use one of {', '.join(FORMATS)}")
    one: Any = v0.write_entries if file.version in v0.VERSIONS else v1.write_entries
    activations: Any = v0.write_by_module if file.by_module else one
    return {
        **head,
        "activation_encodings": activations(file.activations),
        "param_encodings": one(file.params),
        "excluded_layers": list(file.excluded),
        "quantizer_args": dict(file.arguments),
    }


def as_text(content: Mapping[str, Any]) -> str:
    """The file's text: a line for each tensor, so that versions can be compared."""
    lines = []
    for key, value in content.items():
        if key == "encodings" or key in _SECTIONS:
            lines.append(f" {json.dumps(key)}: {_listed(value)}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _listed(section: Any) -> str:
    if not section:
        return json.dumps(section)
    if isinstance(section, dict):
        rows = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in section.items()]
        return "{\n" + ",\n".join(rows) + "\n }"
    return "[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in section) + "\n ]"


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        require_whole(path, CheckpointError)
        found = read_json(path)
    except (OSError, ValueError) as error:
        fix = "write the file again, or take another copy"
        what = f"{path} cannot be read: {reason(error)}"
        raise CheckpointError("FXQ630", what, fix=fix) from error
    if not isinstance(found, dict):
        what = f"{path} holds no encodings, but a {type(found).__name__}"
        fix = "give a file that save_encodings or export wrote"
        raise CheckpointError("FXQ630", what, fix=fix)
    return found


def digest(encodings: dict[str, Any]) -> str:
    """SHA-256 of the file's text."""
    return hashlib.sha256(as_text(encodings).encode()).hexdigest()
