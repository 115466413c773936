"""Loading encodings into a simulated model: everything is checked before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from fxquant.editing import refresh_biases
from fxquant.encodings.collect import Place, places
from fxquant.encodings.entry import Entry
from fxquant.encodings.file import EncodingsFile
from fxquant.encodings.restore import restored, same_encoding
from fxquant.encodings.slots import aliases, float_results
from fxquant.encodings.v2 import VERSIONS as WITHOUT_FLOATS
from fxquant.errors import QuantizationError, SelectorError, nearest
from fxquant.quantization.affine import BiasQuantizeDequantize
from fxquant.quantization.affine.affine_quantizer import AffineQuantizer
from fxquant.quantization.float import FloatQuantizeDequantize

if TYPE_CHECKING:
    from torch import fx

    from fxquant.quantization import QuantizerBase

# ONNX tensor -> names of the places whose grid it lies on
TensorNames = Mapping[str, Iterable[str]]


@dataclass(frozen=True)
class Loaded:
    """What came of loading.

    Attributes:
        loaded: entries that quantizers took.
        ignored: entries that nothing took: no such tensor, no quantizer there, or a bias whose grid
            follows from others.
        missing: places with a quantizer for which the file has nothing.
    """

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class _Step:
    """One quantizer that changes: `made` takes the place, or gives its state."""

    old: QuantizerBase
    made: QuantizerBase | None


def load(
    model: fx.GraphModule,
    file: EncodingsFile,
    *,
    names: Callable[[], TensorNames] | None = None,
    new: Callable[[str, int], QuantizerBase | None] = lambda *_: None,
    strict: bool = True,
    partial: bool = True,
    requires_grad: bool | None = None,
    allow_overwrite: bool | None = True,
) -> Loaded:
    """Give the quantizers of a model the grids of a file; on an error nothing has changed.

    A quantizer keeps its place and its class; bitwidth, symmetry and range become those of the
    file, and a float entry puts a float quantizer there.

    Args:
        model: the model of a simulation.
        file: what was read.
        names: gives the ONNX names of activations, for files that are not keyed by module.
        new: gives a quantizer of so many bits for a value that the graph returns and that has none,
            by its place; None leaves it in floating point.
        strict: refuse entries for which there is no tensor or no quantizer.
        partial: with False, quantizers for which the file has nothing are taken out.
        requires_grad: whether loaded ranges are trained; None leaves that as it is.
        allow_overwrite: whether later calibration may change loaded ranges; None likewise.

    Raises:
        SelectorError: FXQ633, an entry has no quantizer (strict).
        ShapeMismatchError: FXQ634, a quantizer has other ranges.
        QuantizationError: FXQ635 a quantizer cannot have the grid, FXQ636 two entries for one.
    """
    found = list(places(model))
    results = _Results(float_results(model), new)
    elsewhere = aliases(model) if file.by_module else {}
    matched, ignored = _match(found, file, names, elsewhere, results, strict=strict)
    found = [results.made.get(p.name, p) for p in found]
    steps, taken = _plan(matched)
    kept = {id(p.quantizer) for p in found if _needs_no_entry(p.quantizer, file)}
    missing = [p for p in found if p.quantizer is not None and id(p.quantizer) not in kept | taken]
    if not partial:
        gone = {id(p.quantizer): p.quantizer for p in missing}
        steps += [_Step(q, None) for q in gone.values() if q is not None]
    _carry_out(model, found, steps)
    for quantizer in {id(p.quantizer): p.quantizer for p in places(model)}.values():
        if quantizer is not None and id(quantizer) in taken | {id(s.made) for s in steps}:
            _set_flags(quantizer, requires_grad, allow_overwrite)
    loaded = tuple(entry.name for _, entry in matched)
    return Loaded(loaded, tuple(ignored), tuple(p.name for p in missing))


@dataclass
class _Results:
    """Places for what the graph returns in floating point, with quantizers where a file has grids.

    Attributes:
        open: names of the places.
        new: gives a quantizer of so many bits for a place.
        made: the places that got one.
    """

    open: frozenset[str]
    new: Callable[[str, int], QuantizerBase | None]
    made: dict[str, Place] = field(default_factory=dict)

    def of(self, here: list[Place], entry: Entry) -> list[Place]:
        """The places among these that take the entry."""
        if entry.float_type == "float32":
            return []
        for place in here:
            if place.name in self.open and place.name not in self.made:
                quantizer = self.new(place.name, entry.bits)
                self.made[place.name] = replace(place, quantizer=quantizer)
        found = [self.made[p.name] for p in here if p.name in self.made]
        return [p for p in found if p.quantizer is not None]


def _match(
    found: list[Place],
    file: EncodingsFile,
    names: Callable[[], TensorNames] | None,
    elsewhere: Mapping[str, QuantizerBase],
    results: _Results,
    *,
    strict: bool,
) -> tuple[list[tuple[Place, Entry]], list[str]]:
    """Every entry with every place that it speaks of, and the entries that nothing takes."""
    by_name: dict[str, list[Place]] = {}
    for place in found:
        by_name.setdefault(place.name, []).append(place)
    if any(e.name not in by_name for e in file.entries) and not file.by_module and names:
        for tensor, targets in names().items():
            by_name.setdefault(tensor, [p for t in targets for p in by_name[t]])
    for name, quantizer in elsewhere.items():
        by_name[name] = [p for p in found if p.quantizer is quantizer]
    matched, ignored = [], []
    for entry in file.entries:
        here = by_name.get(entry.name, [])
        active = [p for p in here if p.quantizer is not None] or results.of(here, entry)
        if strict and not active:
            raise _unmatched(entry.name, by_name, known=bool(here))
        taking = [p for p in active if not isinstance(p.quantizer, BiasQuantizeDequantize)]
        matched += [(p, entry) for p in taking]
        ignored += [] if taking else [entry.name]
    return matched, ignored


def _unmatched(name: str, known_names: Iterable[str], *, known: bool) -> SelectorError:
    if known:
        what = f"{name} has an encoding in the file, but no quantizer in the simulation"
        return SelectorError("FXQ633", what, fix="place one, or load with strict=False")
    fix = nearest(name, known_names) or "load encodings of this model, or with strict=False"
    return SelectorError("FXQ633", f"the simulation has no tensor called {name!r}", fix=fix)


def _plan(matched: list[tuple[Place, Entry]]) -> tuple[list[_Step], set[int]]:
    planned: dict[int, tuple[_Step, str]] = {}
    for place, entry in matched:
        old = place.quantizer
        if old is None:
            continue
        made = restored(place, entry)
        before = planned.get(id(old))
        if before is None:
            planned[id(old)] = (_Step(old, made), entry.name)
        elif not _agree(before[0].made, made):
            what = f"{before[1]} and {entry.name} share a quantizer, but not their encoding"
            raise QuantizationError("FXQ636", what, fix="make them equal, or leave one out")
    return [step for step, _ in planned.values()], set(planned)


def _agree(a: QuantizerBase | None, b: QuantizerBase | None) -> bool:
    return a is b if a is None or b is None else same_encoding(a, b)


def _needs_no_entry(quantizer: QuantizerBase | None, file: EncodingsFile) -> bool:
    if isinstance(quantizer, BiasQuantizeDequantize):
        return True
    floating = isinstance(quantizer, FloatQuantizeDequantize) and not quantizer.scaled
    return floating and file.version in WITHOUT_FLOATS


# --- changing the model: from here on nothing can fail -------------------------------------------


def _carry_out(model: fx.GraphModule, found: list[Place], steps: list[_Step]) -> None:
    new: dict[int, QuantizerBase | None] = {}
    for step in steps:
        if step.made is not None and type(step.made) is type(step.old):
            _take_over(step.old, step.made)
        else:
            new[id(step.old)] = step.made
    for place in found:
        given = new.get(id(place.quantizer), place.quantizer)
        if given is not place.home._modules.get(str(place.key)):
            place.home[place.key] = given
    refresh_biases(model)


def _take_over(old: QuantizerBase, made: QuantizerBase) -> None:
    """The same object, so that all who hold it and every optimizer see the new range."""
    if isinstance(old, AffineQuantizer) and isinstance(made, AffineQuantizer):
        old._set_grid(made.grid)
    with torch.no_grad():
        for own, other in zip(old.parameters(), made.parameters(), strict=True):
            own.copy_(other)


def _set_flags(
    quantizer: QuantizerBase, requires_grad: bool | None, allow_overwrite: bool | None
) -> None:
    if requires_grad is not None:
        quantizer.requires_grad_(requires_grad)
    if allow_overwrite is not None:
        quantizer.allow_overwrite(allow_overwrite)
