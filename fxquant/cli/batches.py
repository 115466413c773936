"""Data that the command line names: batches from numpy files or from functions, always checked.

Every mistake is a `ConfigError` with a code 72x or 73x.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxquant.cli.image_folder import ImageFolder
from fxquant.cli.input_keys import Keys, rows
from fxquant.cli.loading import RAISED, call, failed, load_function
from fxquant.errors import ConfigError, FxQuantError
from fxquant.io.reading import read_arrays, reason

Batch = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
ALL = Keys()


@dataclass(frozen=True)
class Data:
    """Batches that can be read more than once.

    Attributes:
        name: what the user wrote; used in messages.
        read: starts a new pass over the batches.
        count: number of batches; None when only reading tells.
    """

    name: str
    read: Callable[[], Iterator[Batch]]
    count: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        """The batches, each checked for being finite.

        Raises:
            ConfigError: FXQ724 NaN or infinity, FXQ725 no batch, FXQ726 not tensors.
        """
        index = -1
        for index, batch in enumerate(self.read()):
            yield _checked(batch, f"{self.name}, batch {index}")
        if index < 0:
            raise ConfigError("FXQ725", f"{self.name} gives no data", fix="give at least one batch")

    def first(self) -> Batch:
        """The first batch."""
        return next(iter(self))

    def take(self, count: int | None) -> Data:
        """At most ``count`` batches of the same data."""
        if count is None:
            return self
        known = None if self.count is None else min(count, self.count)
        return Data(self.name, lambda: (b for b, _ in zip(self.read(), range(count))), known)  # noqa: B905 - the shorter ends it


def load_data(
    spec: str, *, batch_size: int = 32, model: nn.Module | None = None, keys: Keys = ALL
) -> Data:
    """Data from ``.npy``, ``.npz`` or a function that yields batches.

    An ``.npy`` array, and an ``.npz`` with one array, is the first input. Several arrays of an
    ``.npz`` are inputs by name, or in order when they are called ``arr_0``, ``arr_1`` and so on.
    Arrays that are called "label", "target" or the like and are no inputs are passed over, and so
    is what a function yields beside the inputs. The first axis is split into batches. 64-bit floats
    become 32-bit.

    Args:
        spec: a file, or ``path.py:function``, which yields a tensor, a tuple of tensors or a dict.
        batch_size: rows in a batch, for files.
        model: its forward arguments are checked against the names in an ``.npz``.
        keys: which arrays, or entries of a dict, are the inputs.

    Raises:
        ConfigError: FXQ720 no such file, FXQ721 another kind of file, FXQ722 damaged or unsafe,
            FXQ723 arrays of different lengths, FXQ727 and FXQ728 names that are not there.
    """
    path = Path(spec)
    if path.suffix not in (".npy", ".npz"):
        return _data_of_function(spec, model, keys)
    inputs = keys.inputs_of(load_arrays(path, keys), model, str(path))
    arrays = inputs.values() if isinstance(inputs, Mapping) else inputs
    total = next((len(v) for v in arrays if v.ndim), 0)

    def read() -> Iterator[Batch]:
        for i in range(0, total, batch_size):
            yield rows(inputs, i, i + batch_size)

    return Data(spec, read, -(-total // batch_size))


def load_arrays(path: Path, keys: Keys = ALL) -> dict[str, Tensor]:
    """The arrays of a file as tensors by name, all of the same length.

    Raises:
        ConfigError: FXQ720 no such file, FXQ722 damaged or unsafe, FXQ723 of different lengths,
            FXQ728 without an array that is asked for.
    """
    if not path.exists():
        what = f"the data file {path} does not exist"
        raise ConfigError("FXQ720", what, fix=_PATH)
    found = keys.wanted(_arrays(path), str(path))
    arrays = {k: _tensor(v, f"{path}, array {k}") for k, v in found.items()}
    lengths = {k: v.shape[0] if v.ndim else 0 for k, v in arrays.items()}
    if len(set(lengths.values())) > 1:
        what = f"the arrays of {path} differ in length: {lengths}"
        fix = "give every array one row for each sample, or choose some with --input"
        raise ConfigError("FXQ723", what, fix=fix)
    return arrays


def image_data(images: ImageFolder) -> Data:
    """The images of a folder, without their classes."""
    count = -(-len(images.files) // images.batch_size)
    return Data(str(images.root), lambda: ((image,) for image, _ in images.batches()), count)


def random_data(shapes: Iterable[str]) -> Data:
    """One batch of normal random tensors of shapes such as ``1,3,224,224``.

    Raises:
        ConfigError: FXQ730, a shape is not a list of positive numbers.
    """
    sizes = [_shape(text) for text in shapes]
    generator = torch.Generator().manual_seed(0)
    batch = tuple(torch.randn(size, generator=generator) for size in sizes)
    return Data("--input-shape", lambda: iter([batch]), 1)


def _shape(text: str) -> list[int]:
    parts = re.split(r"[,x×]", text.replace(" ", ""))
    if not all(p.isascii() and p.isdigit() and int(p) > 0 for p in parts):
        raise ConfigError("FXQ730", f"{text!r} is not a shape", fix="write for example 1,3,224,224")
    return [int(p) for p in parts]


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        loaded = read_arrays(path)
        return {"arr_0": loaded} if isinstance(loaded, np.ndarray) else loaded
    except Exception as error:  # numpy and zipfile let through whatever damage makes of a file
        raise ConfigError(
            "FXQ722",
            f"{path} cannot be read, or holds Python objects and was refused: {reason(error)}",
            fix="save numeric arrays with numpy.save or numpy.savez",
        ) from error


_PATH = "give the path of a .npy or .npz file, or FILE.py:FUNCTION that gives batches"


def _tensor(array: np.ndarray[Any, Any], place: str) -> Tensor:
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    try:
        return torch.from_numpy(np.ascontiguousarray(array))
    except TypeError as error:
        what = f"an array of {array.dtype} is no tensor"
        fix = "store numbers or booleans: array.astype(np.float32), labels as integers"
        raise ConfigError("FXQ722", what, at=place, fix=fix) from error


def _data_of_function(spec: str, model: nn.Module | None, keys: Keys) -> Data:
    if ":" not in spec:
        raise ConfigError(
            "FXQ721",
            f"data of this kind are not supported: {spec}",
            fix="give a .npy or .npz file, or path.py:function that yields batches",
        )
    function = load_function(spec, what="data function")
    made = call(function, spec)
    if not isinstance(made, Iterable) or isinstance(made, (Tensor, Mapping, str)):
        raise ConfigError(
            "FXQ726",
            f"{spec} returned a {type(made).__name__}, not batches",
            fix="yield one batch after the other: a tensor, a tuple of tensors or a dict",
        )
    count = len(made) if isinstance(made, Sized) else None

    def read() -> Iterator[Batch]:
        for i, batch in enumerate(_guarded(call(function, spec), spec)):
            yield keys.inputs_in(batch, model, f"{spec}, batch {i}")

    return Data(spec, read, count)


def _guarded(batches: Iterable[Batch], spec: str) -> Iterator[Batch]:
    try:
        yield from batches
    except FxQuantError:
        raise
    except RAISED as error:  # the user's generator may raise anything; say which one it was
        raise failed(error, f"reading {spec} failed") from error


def _checked(batch: Any, place: str) -> Batch:
    batch = tuple(batch) if isinstance(batch, list) else batch
    if isinstance(batch, Tensor):
        parts: list[tuple[Any, Any]] = [("the input", batch)]
    elif isinstance(batch, Mapping):
        parts = list(batch.items())
    else:
        parts = list(enumerate(batch)) if isinstance(batch, tuple) else [("the input", batch)]
    for name, value in parts:
        if not isinstance(value, Tensor):
            raise ConfigError(
                "FXQ726",
                f"input {name!r} is a {type(value).__name__}, not a tensor",
                at=place,
                fix="a batch is a tensor, a tuple of tensors or a dict of tensors",
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            what = f"input {name!r} holds NaN or infinity"
            raise ConfigError("FXQ724", what, at=place, fix="leave the sample out, or clean it")
    return batch  # type: ignore[no-any-return]
