"""The grids, integers and decisions of an artifact: of an ONNX file, encodings or a recipe."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fxquant.encodings import Entry, read
from fxquant.errors import ConfigError, FxQuantError
from fxquant.io.writing import as_path
from fxquant.onnx.io.reader import read_model
from fxquant.onnx.qdq import constant, grid_range, spread
from fxquant.records.named_files import sha256_of
from fxquant.records.recipe_schema import SUFFIX, Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

_GRIDS = ("QuantizeLinear", "DequantizeLinear")
_BIAS_BITS = 32


@dataclass(frozen=True)
class Contents:
    """What an artifact says; what its kind of file cannot say is empty.

    Attributes:
        grids: by the name of the tensor, in the order of the file.
        kinds: "activation", "weight" or "bias", by the same names.
        integers: of constants, as steps from the one that stands for zero.
        floats: constants that stay in floating point.
        operators: how many there are of each, without Q and DQ; None: the file does not say.
        recipe: the recipe; None where there is none.
        notes: what was not found.
    """

    grids: dict[str, Entry] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    integers: dict[str, NDArray[Any]] = field(default_factory=dict)
    floats: dict[str, NDArray[Any]] = field(default_factory=dict)
    operators: Counter[str] | None = None
    recipe: Recipe | None = None
    notes: tuple[str, ...] = ()


def contents_of(path: str | Path) -> Contents:
    """Read an artifact: an ONNX file, an encodings file, a recipe, or the folder of an export.

    Raises:
        ConfigError: FXQ773, it is none of these, or cannot be read; FXQ774 and FXQ775 for recipes.
    """
    file = as_path(path, "the artifact")
    if file.is_dir():
        return _of_folder(file)
    if file.name.endswith((".yaml", ".yml")):
        return _of_recipe(file)
    try:
        return _of_onnx(file) if file.suffix == ".onnx" else _of_encodings(file)
    except ConfigError:
        raise
    except FxQuantError as error:  # of a checkpoint, or of a model: here it is a wrong argument
        raise ConfigError("FXQ773", error.what, at=error.at, fix=_FIX) from error


_FIX = "name a whole .onnx file, an encodings file, a recipe, or the folder of an export"


def _of_folder(folder: Path) -> Contents:
    found = sorted(folder.glob("*.onnx")) or sorted(folder.glob("*.encodings"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        what = f"the folder {folder} should hold one export; ONNX or encodings files: {names}"
        raise ConfigError("FXQ773", what, fix=_FIX)
    recipe = found[0].with_name(f"{found[0].stem}{SUFFIX}")
    contents = contents_of(found[0])
    return _with_recipe(contents, Recipe.load(recipe)) if recipe.is_file() else contents


def _of_recipe(file: Path) -> Contents:
    recipe = Recipe.load(file)
    written = [file.parent / name for name in recipe.artifact.files if name.endswith(".onnx")]
    if len(written) == 1 and written[0].is_file():
        return _with_recipe(contents_of(written[0]), recipe)
    note = f"{file.name}: its ONNX file does not lie beside it; the recipes alone are compared"
    return Contents(recipe=recipe, notes=(note,))


def _with_recipe(contents: Contents, recipe: Recipe) -> Contents:
    return Contents(**{**vars(contents), "recipe": recipe})


def _of_encodings(path: Path) -> Contents:
    file = read(path)
    params = {entry.name for entry in file.params}
    return Contents(
        grids={entry.name: entry for entry in file.entries},
        kinds={e.name: _kind(e, is_constant=e.name in params) for e in file.entries},
    )


def _of_onnx(path: Path) -> Contents:
    model = read_model(path)
    grids = [node for node in model.graph if node.op_type in _GRIDS]
    own = {*grids, *(clip for node in grids if (clip := _clip(node)) is not None)}
    found = Contents(operators=Counter(n.op_type for n in model.graph if n not in own))
    for node in grids:
        _add_grid(node, found)
    read_by = {str(v.name) for node in own for v in node.inputs if v is not None}
    for name, value in model.graph.initializers.items():
        if name not in read_by and value.dtype is not None and value.dtype.is_floating_point():
            found.floats[name] = _array(constant(value))
    for entry in _own_encodings(path, model):
        if entry.name in found.grids:  # a type of ONNX may have more bits than the grid
            found.grids[entry.name] = entry
    return found


def _own_encodings(path: Path, model: ir.Model) -> tuple[Entry, ...]:
    """The entries of the encodings beside a file, if they were written with it."""
    beside = path.with_suffix(".encodings")
    told = model.metadata_props.get("fxquant.encodings_sha256")
    return read(beside).entries if beside.is_file() and sha256_of(beside) == told else ()


def _add_grid(node: ir.Node, found: Contents) -> None:
    """The grid of a tensor that becomes integers, or of integers that are stored."""
    stored = constant(node.inputs[0])
    if node.op_type == "DequantizeLinear" and stored is None:
        return  # of a tensor whose Q node has it
    scale = constant(node.inputs[1])
    if scale is None:
        return  # it is known only when the model runs
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    zero = np.zeros(scale.shape, np.int64) if zero is None else _array(zero).astype(np.int64)
    tensor, low, high = _cut(node, scale, zero)
    name = "" if tensor is None else str(tensor.name)
    block = node.attributes.get_int("block_size", 0) or None
    entry = Entry(
        name, (high - low).bit_length(), scale, zero - low, signed=low < 0, block=block,
        axis=node.attributes.get_int("axis", 1) if scale.ndim else None,
    )  # fmt: skip
    found.grids.setdefault(name, entry)
    found.kinds.setdefault(name, _kind(entry, is_constant=stored is not None))
    if stored is not None and stored.size:
        # less the one that stands for zero: signed and unsigned storage become the same
        found.integers[name] = _array(stored).astype(np.int64) - spread(node, zero, stored.shape)


def _clip(node: ir.Node) -> ir.Node | None:
    """What cuts integers off before a Q whose type has more than the grid."""
    before = None if node.inputs[0] is None else node.inputs[0].producer()
    return before if before is not None and before.name == f"{node.name}_clip" else None


def _cut(
    node: ir.Node, scale: NDArray[Any], zero: NDArray[Any]
) -> tuple[ir.Value | None, int, int]:
    """The tensor of a Q or DQ, and the smallest and largest integer of its grid."""
    clip = _clip(node)
    ends = [] if clip is None else [constant(v) for v in clip.inputs[1:3]]
    if clip is None or scale.size != 1 or len(ends) != 2 or any(end is None for end in ends):
        return node.inputs[0], *grid_range(node)
    low, high = (int(np.rint(_array(end) / scale + zero).item()) for end in ends)
    return clip.inputs[0], low, high


def _array(value: NDArray[Any] | None) -> NDArray[Any]:
    return np.zeros(0) if value is None else np.asarray(value)


def _kind(entry: Entry, *, is_constant: bool) -> str:
    if not is_constant:
        return "activation"
    return "bias" if entry.bits == _BIAS_BITS else "weight"
