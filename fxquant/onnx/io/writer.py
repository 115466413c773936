"""Writing a model: whole or not at all, large weights beside it, equal models in equal bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from fxquant._version import __version__
from fxquant.encodings.file import digest
from fxquant.errors import ExportError
from fxquant.io.writing import as_path, publish, remove_unused, stage
from fxquant.onnx.weightless import weight_bytes

if TYPE_CHECKING:
    from fxquant.onnx.lowering.result import Lowered

# protobuf ends at 2 GB; half of it leaves room for whoever edits the file
EXTERNAL_FROM = 1 << 30


def write_model(
    lowered: Lowered | ir.Model,
    path: str | Path,
    *,
    encodings: dict[str, Any] | None = None,
    external_from: int = EXTERNAL_FROM,
    home: Path | None = None,
) -> list[Path]:
    """Write the ONNX file, with `<name>.data` beside it when the weights are large.

    The file appears under its name only when it is complete. Weights beside an older file are not
    written over, as that file still reads them: the new ones are called `<name>.<digest>.data`, and
    the old ones go once the new file has its name. The version of the tool and the hash of the
    encodings go into the model's metadata.

    Args:
        lowered: a lowering or its model.
        path: the file.
        encodings: content of the encodings file that belongs to the model.
        external_from: bytes of weights from which they are stored beside the model.
        home: folder that the files are moved to later, with `remove_unused`; default: they stay.

    Returns:
        The files, weights first.

    Raises:
        ExportError: FXQ509, FXQ543 or FXQ544, the file cannot be written.
    """
    path = as_path(path)
    model = lowered if isinstance(lowered, ir.Model) else lowered.model
    model.metadata_props.update(metadata(encodings))
    large = weight_bytes(model) > external_from
    external = _free_name(model, home or path.parent, path.name) if large else None
    if not path.parent.is_dir() or path.is_dir():
        what = f"{str(path)!r} cannot be written: "
        what += "it is a folder" if path.is_dir() else "its folder does not exist"
        raise ExportError("FXQ509", what, fix="choose a file in a folder that exists")
    files = _write(model, path, external)
    if home is None:
        remove_unused(path, external)
    return files


def _free_name(model: ir.Model, home: Path, name: str) -> str:
    plain = f"{name}.data"
    if not (home / plain).exists():
        return plain
    digest = hashlib.sha256()
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            digest.update(value.const_value.tobytes())
    return f"{name}.{digest.hexdigest()[:8]}.data"


def metadata(encodings: dict[str, Any] | None) -> dict[str, str]:
    """What the model says about its origin."""
    props = {"fxquant.version": __version__}
    if encodings is not None:
        props["fxquant.encodings_sha256"] = digest(encodings)
    return props


def _write(model: ir.Model, path: Path, external: str | None) -> list[Path]:
    with stage(path.parent, path.name) as work:
        if external:
            ir.save(model, work / path.name, external_data=external)
        else:
            (work / path.name).write_bytes(_serialized(model))
        publish(work, path.parent)
    return [*([path.parent / external] if external else []), path]


def _serialized(model: ir.Model) -> bytes:
    """The file's content; initializers say their type themselves, once is enough."""
    proto = ir.to_proto(model)
    described = [v for v in proto.graph.value_info if v.name not in model.graph.initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(described)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content
