"""`save_checkpoint(sim, path)` and `load_checkpoint(path)`, without pickle.

AIMET's checkpoint is a pickled simulation, which runs code of whoever wrote the file. Ours is
safetensors and JSON, and holds no Python: the simulation that it is loaded into comes from this
process, where it was saved, or is built from the model that the caller gives.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from fxquant import checkpoint
from fxquant.editing import refresh_biases
from fxquant.errors import CheckpointError
from fxquant.io.writing import as_path
from fxquant.quantization.affine.gridded import Gridded
from fxquant.quantization.range_to_qparams import IntegerRange

if TYPE_CHECKING:
    from pathlib import Path

    from fxquant.sim import QuantizationSimModel

# what was saved by this process: the structure, which shares the tensors of what was saved
_SAVED: dict[Path, QuantizationSimModel] = {}


def save_checkpoint(quant_sim_model: QuantizationSimModel, file_path: str | Path) -> None:
    """Write a simulation; see `fxquant.save_checkpoint`.

    Args:
        quant_sim_model: the simulation.
        file_path: a folder that is made, or an older checkpoint that is replaced as a whole.

    Raises:
        CheckpointError: as for `fxquant.save_checkpoint`.
    """
    checkpoint.save_checkpoint(quant_sim_model, file_path)
    model = quant_sim_model.model
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    _SAVED[as_path(file_path).resolve()] = copy.deepcopy(quant_sim_model, shared)


def saved_here(file_path: str | Path) -> QuantizationSimModel:
    """A simulation like the one that this process saved.

    Raises:
        CheckpointError: FXQ608, another process saved it.
    """
    saved = _SAVED.get(as_path(file_path).resolve())
    if saved is None:
        what = f"{file_path} was not saved by this process, and a checkpoint holds no Python code"
        fix = "load_checkpoint(path, model=model, dummy_input=x) with the float model"
        raise CheckpointError("FXQ608", what, fix=fix)
    return copy.deepcopy(saved)


def edit_as_saved(sim: QuantizationSimModel, described: dict[str, Any]) -> None:
    """Give quantizers the integers that were saved, and take out those that were not.

    Args:
        sim: a simulation of the same model.
        described: descriptions of quantizers by their paths.
    """
    for path, quantizer in list(sim.named_quantizers()):
        home, _, key = path.rpartition(".")
        known = described.get(path)
        if known is None:
            place: Any = sim.model.get_submodule(home)
            place[int(key) if key.isdigit() else key] = None
        elif isinstance(quantizer, Gridded):
            grid = IntegerRange(known["qmin"], known["qmax"], known["symmetric"])
            if grid != quantizer.grid:
                quantizer._set_grid(grid)
    refresh_biases(sim.model)
