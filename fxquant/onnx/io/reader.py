"""Reading ONNX files of any tool into one form that the rest can rely on.

Nodes are in order and have names, functions are inlined, constants are initializers, and Identity
is gone, as it is for onnxruntime.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass

from fxquant.errors import ExportError, FxQuantError
from fxquant.io import reading
from fxquant.io.reading import Refused, require_file
from fxquant.io.writing import as_path, require_whole
from fxquant.onnx.io.limits import require_content, require_expandable, require_small_constants


def read_model(path: str | Path) -> ir.Model:
    """A model from a file, in the form of `tidy`.

    Raises:
        ExportError: FXQ511 the file is no ONNX model, or breaks a limit of `fxquant.io.reading`;
            FXQ570 its weights are not where it says; FXQ751 it is of an export that was cut short.
    """
    path = as_path(path)
    require_whole(path)
    with readable(path):
        size = require_file(path, reading.ONNX_BYTES)
        model = ir.load(path)
        if not model.opset_imports:  # protobuf reads an empty file, and many others, as no content
            msg = "it names no version of the operators"
            raise Refused(msg)
        require_expandable(model)
        _require_weights(model)
        tidy(model)
        require_content(model)
        require_small_constants(model, size)
    return model


@contextlib.contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Whatever fails in the block is a fault of the file.

    Raises:
        ExportError: FXQ511.
    """
    try:
        yield
    except FxQuantError:
        raise
    except Exception as error:  # protobuf, onnx_ir and the file system each have their own
        what = f"{str(path)!r} cannot be read as ONNX: {first_line(error)}"
        fix = "give the path of a whole .onnx file"
        if isinstance(error, Refused):
            fix += "; whoever must read this one raises the limits of fxquant.io.reading"
        raise ExportError("FXQ511", what, fix=fix) from error


def tidy(model: ir.Model) -> ir.Model:
    """The same model in that form; in place."""
    if model.functions:
        InlinePass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if not _is_ordered(model.graph):
        model.graph.sort()
    _drop_identities(model.graph)
    taken = {node.name for node in model.graph}
    for node in model.graph:
        if node.name:
            continue
        output = next((v.name for v in node.outputs if v.name), "")
        name = stem = f"{node.op_type}({output})"
        count = 0
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        node.name = name
        taken.add(name)
    return model


def _drop_identities(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type == "Identity" and not node.outputs[0].is_graph_output():
            source = node.inputs[0]
            if source is not None:
                node.outputs[0].replace_all_uses_with(source)
                graph.remove(node, safe=True)


def _is_ordered(graph: ir.Graph) -> bool:
    seen: set[ir.Node] = set()
    for node in graph:
        before = (v.producer() for v in node.inputs if v is not None)
        if any(p is not None and p.graph is graph and p not in seen for p in before):
            return False
        seen.add(node)
    return True


def is_whole(graph: ir.Graph) -> bool:
    """Whether something makes every value that nodes or outputs read."""
    given = {*graph.inputs, *graph.initializers.values()}
    read = [v for node in graph for v in node.inputs if v is not None and v.name]
    return all(v.producer() is not None or v in given for v in [*read, *graph.outputs])


def _require_weights(model: ir.Model) -> None:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        path = Path(tensor.path)
        end = (tensor.offset or 0) + (tensor.length or 0)
        have = path.stat().st_size if path.is_file() else -1
        if have < end:
            what = f"the weight {value.name!r} is not in {str(path)!r}: the file is "
            what += "missing" if have < 0 else f"too short, {have} of {end} bytes"
            raise ExportError("FXQ570", what, fix="put the file with the weights beside the model")


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
