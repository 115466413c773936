"""Inputs for a model from arrays or an `.npz` file, checked against what the model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.errors import ConfigError
from fxquant.io.reading import read_arrays, reason
from fxquant.onnx.session import as_feed

Feeds = dict[str, NDArray[Any]]
Data = str | Path | Mapping[str, Any] | Sequence[Any]


def feeds_of(graph: ir.Graph, data: Data) -> Feeds:
    """Arrays by the names of the graph inputs.

    Args:
        graph: the graph; inputs with a stored default may be left out.
        data: arrays by name or in order, or the path of an `.npz` (or `.npy`) file with them.

    Raises:
        ConfigError: FXQ583 the data cannot be read, FXQ584 it does not fit the inputs.
    """
    found = _by_name([v for v in graph.inputs if v.const_value is None], _loaded(data))
    for value in graph.inputs:
        if value.name in found:
            _require_fit(value, found[value.name])
    return found


def _loaded(data: Data) -> Mapping[str, Any] | Sequence[Any]:
    if not isinstance(data, str | Path):
        return data
    try:
        content = read_arrays(Path(data))
        return [content] if isinstance(content, np.ndarray) else content
    except Exception as error:  # numpy and zipfile let through whatever damage makes of a file
        what = f"the data {str(data)!r} cannot be read: {reason(error)}"
        fix = "save it with numpy.savez(path, name_of_input=array, ...)"
        raise ConfigError("FXQ583", what, fix=fix) from error


def _by_name(inputs: Sequence[ir.Value], data: Mapping[str, Any] | Sequence[Any]) -> Feeds:
    names = [str(v.name) for v in inputs]
    unnamed = isinstance(data, Mapping) and all(k == f"arr_{i}" for i, k in enumerate(data))
    if isinstance(data, Mapping) and not unnamed:
        given = dict(data)
    else:
        values = list(data.values()) if isinstance(data, Mapping) else list(data)
        given = dict(zip(names, values, strict=False))
    missing = [n for n in names if n not in given]
    if missing:
        what = f"the data lacks the inputs {', '.join(missing)}"
        raise ConfigError("FXQ584", what, fix=f"name the arrays {', '.join(names)}")
    return {n: as_feed(given[n]) for n in names}


def _require_fit(value: ir.Value, array: NDArray[Any]) -> None:
    """The array has the type of the input, and its shape where that is fixed."""
    wanted = value.dtype.numpy() if value.dtype not in (None, ir.DataType.STRING) else array.dtype
    shape = list(value.shape) if value.shape is not None else list(array.shape)
    fits = len(shape) == array.ndim and all(
        not isinstance(a, int) or a == b for a, b in zip(shape, array.shape, strict=True)
    )
    if array.dtype == wanted and fits and (not shape or len(array)):
        return
    sizes = ", ".join(str(d if isinstance(d, int) else d.value or "?") for d in shape)
    what = f"the input {value.name!r} is {wanted} [{sizes}], the data has {array.dtype} "
    what += f"{list(array.shape)}"
    raise ConfigError("FXQ584", what, fix="give an array of this type and shape, with a row")


def with_nan(feeds: Mapping[str, NDArray[Any]]) -> list[str]:
    """Names of the arrays that hold NaN; infinities are what masks are made of."""
    return [n for n, x in feeds.items() if x.dtype.kind == "f" and np.isnan(x).any()]
