"""What differs between two artifacts: grids, Q/DQ positions, integers, and what noise comes of it.

The noise is that of rounding alone: a value that falls anywhere between two neighbours of a grid
with scale `s` is off by `s**2 / 12` in the mean square (Bennett 1948, "Spectra of quantized
signals"). What clipping takes away is not in the files and not in the numbers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from fxquant.comparison.artifact_grids import Contents, contents_of
from fxquant.encodings.diff import compare
from fxquant.io.text_tables import table
from fxquant.quantization.decibels import decibels

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from fxquant.encodings import Entry

_NAME, _WHAT = 26, 78  # characters of a name in the table, and of a line


@dataclass(frozen=True)
class TensorChange:
    """One tensor whose grid or integers differ.

    Attributes:
        name: the tensor.
        kind: "activation", "weight", "bias", or "float" for a constant without a grid.
        where: "both", "first" for a grid that only the first artifact has, or "second".
        bits: in the first and the second; None where it has no grid.
        scale: the scale of the second as a multiple of the first's, in the root mean square; None
            where one has none.
        zero_points: how many zero points differ.
        integers: how many values of a constant differ.
        elements: values of the constant; 0 for what is no constant, or not in the files.
        noise_db: expected change of the noise of rounding; None where it cannot be told.
        what: how the grids differ, in words.
    """

    name: str
    kind: str
    where: str = "both"
    bits: tuple[int | None, int | None] = (None, None)
    scale: float | None = None
    zero_points: int = 0
    integers: int = 0
    elements: int = 0
    noise_db: float | None = None
    what: str = ""


@dataclass(frozen=True)
class ArtifactDiff:
    """What differs between two artifacts; truthy when something does.

    Attributes:
        tensors: those that differ, in the order of the first artifact.
        compared: tensors that one of the artifacts has.
        estimate_db: estimate for the whole model, see `diff_artifacts`; None where there is none.
        operators: operators of which there are more or fewer, and how many in each.
        recipe: keys of recipes that differ, and what each of them says.
        notes: what could not be compared.
    """

    tensors: tuple[TensorChange, ...] = ()
    compared: int = 0
    estimate_db: float | None = None
    operators: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    recipe: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tensors or self.operators or self.recipe)

    @property
    def added(self) -> tuple[str, ...]:
        """Tensors that only the second artifact puts on a grid."""
        return self._only_in("second")

    @property
    def removed(self) -> tuple[str, ...]:
        """Tensors that only the first artifact puts on a grid."""
        return self._only_in("first")

    def _only_in(self, where: str) -> tuple[str, ...]:
        return tuple(t.name for t in self.tensors if t.where == where and t.kind != "float")

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "differs": bool(self), "compared": self.compared,
            "tensors": [{**vars(t), "bits": list(t.bits)} for t in self.tensors],
            "added": list(self.added), "removed": list(self.removed),
            "estimate_db": self.estimate_db,
            "operators": {k: list(v) for k, v in self.operators.items()},
            "recipe": {k: list(v) for k, v in self.recipe.items()}, "notes": list(self.notes),
        }  # fmt: skip

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(self.to_dict(), indent=1)

    def text(self, most: int | None = 30) -> str:
        """As a table of at most 80 columns, largest effects first.

        Args:
            most: rows of it; None: all.
        """
        lines = [*_recipe_lines(self.recipe), *self._table(most), *self._positions()]
        lines += [f"{k}: {a} nodes, then {b}" for k, (a, b) in self.operators.items()]
        if self.compared:
            lines.append(f"{len(self.tensors)} of {self.compared} tensors differ")
        if self.estimate_db is not None and self.tensors:
            lines += [
                f"estimate for the whole model: {self.estimate_db:+.1f} dB of rounding noise",
                "  (independent errors that count alike relative to the range in the first;",
                "  clipping is not in it)",
            ]
        lines += self.notes
        return "\n".join(lines if self or self.notes else ["no difference"])

    def __str__(self) -> str:
        return self.text()

    def _table(self, most: int | None) -> list[str]:
        if not self.tensors:
            return []
        shown = sorted(self.tensors, key=_effect, reverse=True)[:most]
        heads = ("tensor", "kind", "bits", "scale", "zeros", "values", "noise dB")
        more = len(self.tensors) - len(shown)
        return [table(heads, [_row(t) for t in shown]), *([f"and {more} more"] if more else [])]

    def _positions(self) -> list[str]:
        pairs = (("added", self.added), ("removed", self.removed))
        return [_fitted(f"Q/DQ {what} ({len(n)})", n) for what, n in pairs if n]


def diff_artifacts(first: str | Path, second: str | Path) -> ArtifactDiff:
    """Compare two ONNX files, encodings files, recipes or folders of exports.

    Kinds may be mixed: what one of them cannot say is not compared. With recipes that lie beside
    their files both are compared.

    The estimate for the whole model adds up what rounding adds to each tensor, relative to its
    range in the first artifact, as if errors were independent and counted alike: it orders
    artifacts of one network, and is no measurement.

    Args:
        first: the one that the other is compared with.
        second: the other.

    Raises:
        ConfigError: FXQ773, FXQ774 or FXQ775, one of them cannot be read.
    """
    a, b = contents_of(first), contents_of(second)
    names = dict.fromkeys((*a.grids, *b.grids))
    changes = [c for name in names if (c := _grid_change(name, a, b)) is not None]
    if a.operators is not None and b.operators is not None:
        # what has a grid in one of them is told already
        changes += _constants(
            *({n: x for n, x in c.floats.items() if n not in names} for c in (a, b))
        )
    return ArtifactDiff(
        tuple(changes), len(names), _estimate(a.grids, b.grids), _operators(a, b),
        _recipes(a, b), tuple(dict.fromkeys((*a.notes, *b.notes, *_other_names(a, b)))),
    )  # fmt: skip


def _other_names(a: Contents, b: Contents) -> tuple[str, ...]:
    """Says so where artifacts call their tensors by other names."""
    # weights have the same names in both
    ours, theirs = ({n for n in c.grids if c.kinds.get(n) == "activation"} for c in (a, b))
    common, fewer = len(ours & theirs), min(len(ours), len(theirs))
    if 2 * common >= fewer:
        return ()
    return (
        f"only {common} of {fewer} activations have the same name in both: they are of two "
        "networks, or one has the names of modules, as what `fxquant merge` writes, and the other "
        "those of ONNX values, as an export; compare two of one kind",
    )


# --- grids and integers --------------------------------------------------------------------------


def _grid_change(name: str, a: Contents, b: Contents) -> TensorChange | None:
    one, other = a.grids.get(name), b.grids.get(name)
    kind = a.kinds.get(name) or b.kinds[name]
    bits = (None if one is None else one.bits, None if other is None else other.bits)
    if one is None or other is None:
        return TensorChange(name, kind, "second" if one is None else "first", bits)
    integers, elements = _values_changed(a.integers.get(name), b.integers.get(name))
    what = compare(one, other)
    if not what and not integers:
        return None
    ratio = _ratio(one, other)
    return TensorChange(
        name, kind, "both", bits, ratio, _zeros_changed(one, other), integers, elements,
        None if ratio is None else 20 * math.log10(ratio), what,
    )  # fmt: skip


def _step(entry: Entry) -> float | None:
    """Root mean square of the scales: channels and blocks have about as many values each."""
    scale = entry.block_scale
    if scale is None or not scale.size:
        return None
    found = float(np.sqrt(np.square(scale, dtype=np.float64).mean()))
    return found if math.isfinite(found) and found > 0 else None


def _ratio(one: Entry, other: Entry) -> float | None:
    first, second = _step(one), _step(other)
    return None if first is None or second is None else second / first


def _zeros_changed(one: Entry, other: Entry) -> int:
    if one.steps is None or other.steps is None or one.bits != other.bits:
        return 0
    first, second = one.steps.reshape(-1), other.steps.reshape(-1)
    if first.size != second.size:
        return int(first.size != 1 or second.size != 1)
    return int((first != second).sum())


def _values_changed(
    one: NDArray[Any] | None, other: NDArray[Any] | None
) -> tuple[int, int]:  # changed, of how many
    if one is None or other is None:
        return 0, 0
    if one.shape != other.shape:
        return max(one.size, other.size), max(one.size, other.size)
    return int((one != other).sum()), one.size


def _constants(
    a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]
) -> Iterable[TensorChange]:
    for name in dict.fromkeys((*a, *b)):
        changed, elements = _values_changed(a.get(name), b.get(name))
        if name not in a or name not in b:
            where = "second" if name not in a else "first"
            yield TensorChange(name, "float", where, elements=(a if name in a else b)[name].size)
        elif changed:
            yield TensorChange(name, "float", integers=changed, elements=elements)


def _estimate(a: Mapping[str, Entry], b: Mapping[str, Entry]) -> float | None:
    before, after = 0.0, 0.0
    for name in dict.fromkeys((*a, *b)):
        one, other = a.get(name), b.get(name)
        width = _width(one or other)
        if width is None:
            continue
        before += _relative(one, width)
        after += _relative(other, width)
    return decibels(after, before) if before > 0 and after > 0 else None


def _width(entry: Entry | None) -> float | None:
    """How wide the range of a tensor is, over its channels."""
    step = None if entry is None else _step(entry)
    return None if entry is None or step is None else step * (2.0**entry.bits - 1)


def _relative(entry: Entry | None, width: float) -> float:
    """Mean square of rounding, relative to the square of a range."""
    step = None if entry is None else _step(entry)
    return 0.0 if step is None else (step / width) ** 2


# --- what is around them -------------------------------------------------------------------------


def _operators(a: Contents, b: Contents) -> dict[str, tuple[int, int]]:
    if a.operators is None or b.operators is None:
        return {}
    names = sorted({*a.operators, *b.operators})
    pairs = {name: (a.operators[name], b.operators[name]) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _recipes(a: Contents, b: Contents) -> dict[str, tuple[Any, Any]]:
    if a.recipe is None or b.recipe is None:
        return {}
    # what was overridden shows in the settings
    one, other = (_flat(r.model_copy(update={"overridden": {}})) for r in (a.recipe, b.recipe))
    names = dict.fromkeys((*one, *other))
    return {n: (one.get(n), other.get(n)) for n in names if one.get(n) != other.get(n)}


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if not isinstance(value, dict) or not value:
        return {place: value}
    inner = [_flat(v, f"{place}.{k}" if place else str(k)) for k, v in value.items()]
    return {k: v for part in inner for k, v in part.items()}


# --- texts ---------------------------------------------------------------------------------------


def _effect(change: TensorChange) -> tuple[bool, bool, float]:
    # the grid of a bias follows from that of the weight
    return change.where != "both", change.kind != "bias", abs(change.noise_db or 0.0)


def _row(t: TensorChange) -> tuple[str, ...]:
    bits = "→".join("-" if b is None else str(b) for b in dict.fromkeys(t.bits))
    values = f"{t.integers}/{t.elements}" if t.integers else ""
    return (
        _short(t.name), t.kind, "" if t.bits == (None, None) else bits,
        "" if t.scale is None or t.scale == 1.0 else f"×{t.scale:.4g}",
        str(t.zero_points or ""), values,
        "" if t.noise_db is None or abs(t.noise_db) < 0.005 else f"{t.noise_db:+.2f}",
    )  # fmt: skip


def _short(name: str) -> str:
    """A long name by its two ends, which tell tensors of deep networks apart."""
    half = (_NAME - 1) // 2
    return name if len(name) <= _NAME else f"{name[:half]}…{name[-half:]}"


def _fitted(head: str, names: Iterable[str]) -> str:
    text = f"{head}: {', '.join(names)}"
    return text if len(text) <= _WHAT else f"{text[: _WHAT - 1]}…"


def _recipe_lines(recipe: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [_fitted(k, [f"{_said(a)}, then {_said(b)}"]) for k, (a, b) in recipe.items()]


def _said(value: Any) -> str:
    text = json.dumps(value)
    is_digest = isinstance(value, str) and re.fullmatch("[0-9a-f]{32,}", value)
    return f"{value[:12]}…" if is_digest else text
