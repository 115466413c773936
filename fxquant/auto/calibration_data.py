"""Data of a quantization: batches without labels, the same ones in every pass.

A search reads the data often, and a run that was killed goes on in another process: loaders that
shuffle draw from a generator that is seeded anew for every pass.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.calibrate import is_iterable_of_batches
from fxquant.errors import CalibrationError
from fxquant.graph.pytree import fresh_inputs, map_leaves, samples_of, tensors
from fxquant.prepare import call_arguments
from fxquant.quantization.digest import tensors_digest

# keys of batches that hold what a model should answer
LABELS = frozenset({"label", "labels", "target", "targets", "y"})
_FEW = 8  # rows of a single batch from which some are held out
_FIX = "pass a list of batches, a loader, or a function that returns one"


@dataclass(frozen=True)
class Batches:
    """Batches that can be read again and again.

    Attributes:
        read: starts a pass.
        sizes: rows of each.
        digest: of their content.
    """

    read: Callable[[], Iterator[Any]]
    sizes: tuple[int, ...]
    digest: str

    @property
    def samples(self) -> int:
        """Rows of all of them."""
        return sum(self.sizes)

    def __iter__(self) -> Iterator[Any]:
        return self.read()

    def __len__(self) -> int:
        return len(self.sizes)

    def first(self) -> Any:
        """The first batch."""
        return next(iter(self))

    def split(self, *, by_rows: bool = False) -> tuple[Batches, Batches]:
        """Batches to calibrate with, and one of four to judge by.

        Args:
            by_rows: a single batch may be split; else it serves for both.
        """
        if len(self) == 1:
            return self._split_rows() if by_rows else (self, self)
        held = {i for i in range(len(self)) if i % 4 == 3} or {len(self) - 1}
        return self._part(set(range(len(self))) - held), self._part(held)

    def _split_rows(self) -> tuple[Batches, Batches]:
        """A single batch without every fourth row, and these rows; itself where it has few."""
        held = torch.arange(self.samples) % 4 == 3
        if self.samples < _FEW or not all(len(t) == self.samples for t in _rows_of(self.first())):
            return self, self

        def only(kept: Tensor) -> Batches:
            def read() -> Iterator[Any]:
                return (map_leaves(batch, lambda leaf: _taken(leaf, kept)) for batch in self.read())

            return Batches(read, (int(kept.sum()),), self.digest)

        return only(~held), only(held)

    def _part(self, kept: set[int]) -> Batches:
        def read() -> Iterator[Any]:
            return (batch for i, batch in enumerate(self.read()) if i in kept)

        return Batches(read, tuple(self.sizes[i] for i in sorted(kept)), self.digest)


def _rows_of(batch: Any) -> list[Tensor]:
    return [t for t in tensors(batch) if t.dim()]


def _taken(leaf: Any, kept: Tensor) -> Any:
    return leaf[kept] if isinstance(leaf, Tensor) and leaf.dim() else leaf


class Content:
    """What the batches of one pass hold.

    Attributes:
        sizes: rows of each.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, batch: Any) -> None:
        """Count one more batch in."""
        named = {str(i): t for i, t in enumerate(tensors(batch))}
        self._hash.update(tensors_digest(named).encode())
        self.sizes.append(samples_of(batch))

    @property
    def digest(self) -> str:
        """Of the content of all of them, in order."""
        return self._hash.hexdigest()


def load_batches(data: Any, model: nn.Module, *, dummy_input: Any = None, seed: int = 0) -> Batches:
    """Batches as the model takes them; all data are read once.

    Args:
        data: an iterable of batches, or a function that returns one; what is used up by reading it
            is read into memory. A batch is a tensor, a tuple or list of positional inputs or a
            dict of keyword inputs. What exceeds the inputs is left out, and so are labels: dict
            entries called so, and integers `[N]` for an argument that has a default.
        model: whose `forward` tells how many inputs there are.
        dummy_input: example inputs, where `forward` does not tell.
        seed: of loaders that shuffle with torch's generator.

    Raises:
        CalibrationError: FXQ480 the data are no batches, FXQ481 there are none, FXQ482 a batch
            holds NaN.
    """
    source, inputs = _source(data), Inputs(model, dummy_input)

    def read() -> Iterator[Any]:
        return (inputs.of(batch) for batch in _seeded(source, seed))

    content = Content()
    for batch in read():
        _check(batch, len(content.sizes))
        content.add(batch)
    if not sum(content.sizes):
        what = "there are no data: no batch holds a sample"
        raise CalibrationError("FXQ481", what, fix="pass a non-empty loader")
    return Batches(read, tuple(content.sizes), content.digest)


def call(model: Callable[..., Any], batch: Any) -> Any:
    """Call a model on a batch; what it writes into its inputs is lost."""
    batch = fresh_inputs(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def _source(data: Any) -> Callable[[], Iterable[Any]]:
    if isinstance(data, Tensor):
        return lambda: [data]
    if callable(data) and not isinstance(data, nn.Module) and not isinstance(data, Iterable):
        made = data()
        if isinstance(made, Iterable) and not isinstance(made, (Tensor, Mapping, str)):
            return lambda: data()
        what = f"the function of the data returned a {type(made).__name__}, not batches"
        raise CalibrationError("FXQ480", what, fix=_FIX)
    if not is_iterable_of_batches(data):
        what = f"data are a {type(data).__name__}, not an iterable of batches"
        raise CalibrationError("FXQ480", what, fix=_FIX)
    if isinstance(data, Iterator):
        kept = list(data)
        return lambda: kept
    return lambda: data


def _seeded(source: Callable[[], Iterable[Any]], seed: int) -> Iterator[Any]:
    """One pass; torch's generator is the data's own while they are drawn."""
    state = torch.Generator().manual_seed(seed).get_state()
    iterator: Iterator[Any] | None = None
    while True:
        others = torch.get_rng_state()
        torch.set_rng_state(state)
        try:
            iterator = iter(source()) if iterator is None else iterator
            batch = next(iterator)
        except StopIteration:
            return
        finally:
            state = torch.get_rng_state()
            torch.set_rng_state(others)
        yield batch


def _check(batch: Any, index: int) -> None:
    found = tensors(batch)
    if not found:
        what = f"batch {index} is a {type(batch).__name__} without tensors"
        raise CalibrationError("FXQ480", what, fix=_FIX)
    if any(t.is_floating_point() and bool(t.isnan().any()) for t in found):
        raise CalibrationError("FXQ482", f"batch {index} holds NaN", fix="clean the data")


class Inputs:
    """Tells the inputs in a batch from what comes with them.

    Args:
        model: whose `forward` tells how many inputs there are.
        dummy_input: example inputs, where `forward` does not tell.
    """

    def __init__(self, model: nn.Module, dummy_input: Any = None) -> None:
        known = inspect.signature(model.forward).parameters.values()
        self.names = {
            p.name: p.default is not p.empty for p in known if p.kind is not p.VAR_KEYWORD
        }
        self.any_name = any(p.kind is p.VAR_KEYWORD for p in known)
        places = [p for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.optional = [p.default is not p.empty for p in places]
        self.most = None if any(p.kind is p.VAR_POSITIONAL for p in known) else len(places)
        if dummy_input is not None:
            args, _ = call_arguments(dummy_input)
            self.most, self.optional = len(args) or self.most, []

    def of(self, batch: Any) -> Any:
        """The inputs: a tensor, a tuple or a dict."""
        if isinstance(batch, Mapping):
            return {k: v for k, v in batch.items() if self._is_named(k)}
        if not isinstance(batch, (tuple, list)):
            return batch
        found = tuple(batch)[: self.most]
        while len(found) > 1 and self._is_label(found):
            found = found[:-1]
        return found

    def _is_named(self, name: Any) -> bool:
        if name in LABELS:  # a model that is given the answers computes a loss, too
            return self.names.get(name) is False
        return name in self.names or self.any_name

    def _is_label(self, found: tuple[Any, ...]) -> bool:
        last, first = found[-1], found[0]
        is_optional = len(found) <= len(self.optional) and self.optional[len(found) - 1]
        plain = isinstance(last, Tensor) and isinstance(first, Tensor) and first.dim() > 1
        return is_optional and plain and last.dim() == 1 and not last.is_floating_point()
