"""Writing a model: whole or not at all, large weights beside it, equal models in equal bytes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from fxquant._version import __version__
from fxquant.errors import ExportError
from fxquant.onnx.encodings_file import digest
from fxquant.onnx.read import weight_bytes

if TYPE_CHECKING:
    from fxquant.onnx.lowered import Lowered

# protobuf ends at 2 GB; half of it leaves room for whoever edits the file
EXTERNAL_FROM = 1 << 30


def write_model(
    lowered: Lowered | ir.Model,
    path: str | Path,
    *,
    encodings: dict[str, Any] | None = None,
    external_from: int = EXTERNAL_FROM,
) -> list[Path]:
    """Write the ONNX file, with `<name>.data` beside it when the weights are large.

    The file appears under its name only when it is complete. The version of the tool and the hash
    of the encodings go into the model's metadata.

    Args:
        lowered: a lowering or its model.
        path: the file.
        encodings: content of the encodings file that belongs to the model.
        external_from: bytes of weights from which they are stored beside the model.

    Returns:
        The files, weights first.

    Raises:
        ExportError: FXQ509, the file cannot be written.
    """
    path = Path(path)
    model = lowered if isinstance(lowered, ir.Model) else lowered.model
    model.metadata_props.update(metadata(encodings))
    external = f"{path.name}.data" if weight_bytes(model) > external_from else None
    try:
        return _write(model, path, external)
    except OSError as error:
        what = f"{str(path)!r} cannot be written: {error.strerror or error}"
        raise ExportError("FXQ509", what, fix="look at the free space and permissions") from error


def metadata(encodings: dict[str, Any] | None) -> dict[str, str]:
    """What the model says about its origin."""
    props = {"fxquant.version": __version__}
    if encodings is not None:
        props["fxquant.encodings_sha256"] = digest(encodings)
    return props


def _write(model: ir.Model, path: Path, external: str | None) -> list[Path]:
    # in the same folder: renaming across file systems is a copy, which can be cut short
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        if external:
            ir.save(model, Path(folder) / path.name, external_data=external)
        else:
            (Path(folder) / path.name).write_bytes(_serialized(model))
        names = [*([external] if external else []), path.name]
        for name in names:
            os.replace(Path(folder) / name, path.parent / name)
    return [path.parent / name for name in names]


def _serialized(model: ir.Model) -> bytes:
    """The file's content; initializers say their type themselves, once is enough."""
    proto = ir.to_proto(model)
    described = [v for v in proto.graph.value_info if v.name not in model.graph.initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(described)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content
