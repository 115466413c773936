"""`save_checkpoint(sim, path)` and `load_checkpoint(path)`, without pickle.

AIMET's checkpoint is a pickled simulation, which runs code of whoever wrote the file. Ours is
safetensors and JSON, and holds no Python: the simulation that it is loaded into comes from this
process, where it was saved, or from the model that the caller gives.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from fxquant import checkpoint
from fxquant.errors import CheckpointError
from fxquant.io.writing import as_path

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


def load_checkpoint(
    file_path: str | Path, *, sim: QuantizationSimModel | None = None
) -> QuantizationSimModel:
    """The simulation that was saved.

    Args:
        file_path: the folder.
        sim: needed in another process than the one that saved: a simulation of the same model,
            made and edited in the same way; it is loaded and returned.

    Raises:
        CheckpointError: FXQ608 another process saved it and there is no `sim`; as for
            `fxquant.load_checkpoint`.
    """
    saved = _SAVED.get(as_path(file_path).resolve())
    if sim is None:
        if saved is None:
            what = f"{file_path} was not saved by this process: a checkpoint holds no Python code"
            fix = (
                "build the simulation from the model again, then "
                "load_checkpoint(path, sim=QuantizationSimModel(model, dummy_input, ...))"
            )
            raise CheckpointError("FXQ608", what, fix=fix)
        sim = copy.deepcopy(saved)
    checkpoint.load_checkpoint(sim, file_path)
    return sim
