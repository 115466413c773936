"""What every node of a recorded graph knows about itself: the user's line, the module, the value.

``node.meta`` is a cache: it is lost by pickling and may be recomputed. Five keys are written while
recording: ``source``, ``module_path``, ``spec``, ``dynamic`` (dimensions of a tensor that can have
another size in another run) and ``nn_module_stack`` (for torch's own tools).
"""

from __future__ import annotations

import fnmatch
import functools
import linecache
import operator
import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from fxquant.graph.symbolic_ints import plain

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from torch.fx import Node


class Source(NamedTuple):
    """A line of the model author's code; ``str()`` gives ``file.py:12``."""

    file: str
    line: int
    function: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class TensorSpec(NamedTuple):
    """Shape and dtype of a tensor seen while recording."""

    shape: tuple[int, ...]
    dtype: torch.dtype


# a TensorSpec, a plain number or text, or tuples, lists and dicts of specs
Spec: TypeAlias = Any


def source(node: Node) -> Source | None:
    """The user's line that made the call, or None where the model has no line of its own."""
    found = node.meta.get("source")
    return found if isinstance(found, Source) else None


def module_path(node: Node) -> str:
    """Dotted path of the module whose forward made the call; the root is the empty text."""
    return str(node.meta.get("module_path", ""))


def spec(node: Node) -> Spec:
    """What the node's value looked like while recording; None if it is not known."""
    return node.meta.get("spec")


def computes_floats(node: Node) -> bool:
    """Whether a node computes floating-point (or complex) tensors from others.

    Putting values into a container, taking them out and filling a tensor with a number is no
    computation.
    """
    if node.op not in ("call_function", "call_method", "call_module") or not _floats(spec(node)):
        return False
    if node.op == "call_module":
        return True
    name = str(getattr(node.target, "__name__", node.target))
    moved = node.target is operator.getitem or isinstance(node.target, type)
    filled = name.endswith("_like") or name.startswith("new_")
    tensors = any(isinstance(spec(n), TensorSpec) for n in node.all_input_nodes)
    return tensors and not moved and not filled


def _floats(found: Spec) -> bool:
    """Whether a recorded value is or holds a tensor of real or complex numbers."""
    if isinstance(found, TensorSpec):
        return found.dtype.is_floating_point or found.dtype.is_complex
    parts = found.values() if isinstance(found, dict) else found
    return isinstance(found, tuple | list | dict) and any(map(_floats, parts))


def spec_of(value: object) -> Spec:
    """Describe a value: tensors by shape and dtype, containers by their parts.

    >>> spec_of((torch.zeros(2, 3), 4))
    (TensorSpec(shape=(2, 3), dtype=torch.float32), 4)
    """
    if isinstance(value, torch.Tensor):
        return TensorSpec(tuple(value.shape), value.dtype)
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return plain(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: spec_of(getattr(value, f.name, None)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {k: spec_of(v) for k, v in value.items()}
    if isinstance(value, list):
        return [spec_of(v) for v in value]
    if isinstance(value, tuple):
        return tuple(spec_of(v) for v in value)
    return None


def user_source(until: CodeType | None = None) -> Source | None:
    """The nearest line on the stack that is neither torch's, nor ours, nor the standard library's.

    Args:
        until: code object of the function that started the recording; nothing above it counts.
    """
    frame = user_frame(until)
    return None if frame is None else source_of(frame)


def source_of(frame: FrameType) -> Source:
    """The line that a frame of the author's is at."""
    code, line = frame.f_code, frame.f_lineno
    text = linecache.getline(code.co_filename, line).strip()
    return Source(shown_file(code.co_filename) or "", line, code.co_name, text)


def user_frame(until: CodeType | None = None) -> FrameType | None:
    """The frame of `user_source`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is until:
            return None
        if shown_file(code.co_filename) is not None:
            return frame
        frame = frame.f_back
    return None


@functools.cache
def shown_file(filename: str) -> str | None:
    """How a file is named to the user, or None when it is not the user's.

    Generated code (``<string>`` of dataclasses, ``<eval_with_key>`` of torch.fx) has no line worth
    showing, a prompt or a notebook cell has.
    """
    if filename.startswith("<"):
        return filename if filename.startswith(("<stdin", "<ipython", "<python-input")) else None
    path = os.path.realpath(filename)
    if _is_below(path, _HOUSE) and not _is_below(path, _EXAMPLE_MODELS):
        return None
    packages = f"{os.sep}site-packages{os.sep}"
    if packages in path:
        inside = path.rpartition(packages)[2].split(os.sep)
        return None if inside[0] in _NOT_MODELS else "/".join(inside)
    if _is_below(path, _TORCH) or _is_below(path, _STDLIB):
        return None
    try:
        return Path(path).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return "/".join(Path(path).parts[-2:])


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder + os.sep)


_HOUSE = os.path.realpath(Path(__file__).parent.parent)
_EXAMPLE_MODELS = os.path.realpath(os.path.join(_HOUSE, "models"))
_TORCH = os.path.realpath(Path(torch.__file__).parent)
_STDLIB = os.path.realpath(sysconfig.get_path("stdlib"))
# libraries of operators: their callers are the model's code, they are not
_NOT_MODELS = frozenset({"torch", "einops", "numpy", "opt_einsum"})


def path_matches(pattern: str, path: str, *, below: bool = False) -> bool:
    """Whether a path is the one that is written, or fits the glob."""
    if not isinstance(pattern, str):
        return False
    if path == pattern:
        return bool(path)
    if below and path.startswith(f"{pattern}."):
        return True
    return bool(path) and fnmatch.fnmatchcase(path, pattern)
