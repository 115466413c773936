"""Layers that a reconstruction has finished, in files: one that was killed goes on behind them.

Each layer is one safetensors file, which gets its name when it is whole; its report stands in its
metadata as JSON. A run is known by a hash of the model, the options and the data: what another run
left in the same folder is neither read nor removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fxquant.errors import CheckpointError
from fxquant.graph.pytree import leaves
from fxquant.io.reading import Refused, require_file
from fxquant.io.state_dicts import write_tensors
from fxquant.io.writing import as_path, new_file
from fxquant.nn import QuantizationMixin
from fxquant.ptq.reconstruction_report import LayerReport
from fxquant.ptq.walking.originals import float_value
from fxquant.quantization.digest import tensor_digest, tensors_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fxquant.ptq.layers.layer import Layer
    from fxquant.ptq.walking.walk import Walk

_REPORT = "fxquant.layer"


class FinishedLayers:
    """Files of one run.

    Args:
        folder: where the run's own folder is made; None: nothing is kept.
        walk: the walk, with its data.
        options: what else the result depends on.

    Raises:
        CheckpointError: FXQ542 to FXQ545, nothing can be written there.
    """

    def __init__(self, folder: str | Path | None, walk: Walk, options: Mapping[str, Any]) -> None:
        self._home: Path | None = None
        self._numbers: dict[str, int] = {}
        if folder is not None:
            run = _hash_of_run(walk, options)
            if walk.parts.decides:
                self._home = as_path(folder) / f"reconstruction-{run}"

    def restored(self, layer: Layer) -> LayerReport | None:
        """Give a layer what was found for it before; None if it is not finished."""
        path = self._path(layer)
        if path is None or not path.exists():
            return None
        try:
            require_file(path)
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                report = LayerReport(**json.loads((file.metadata() or {})[_REPORT]))
        except (OSError, Refused, SafetensorError, KeyError, TypeError, ValueError):
            return None  # damaged: it is computed again
        if report.changed != "nothing":
            layer.set_state(tensors)
        return report

    def keep(self, layer: Layer, report: LayerReport) -> None:
        """Write down what was found for a layer."""
        path = self._path(layer)
        if path is None:
            return
        tensors = {n: t.detach().cpu().contiguous() for n, t in layer.state().items()}
        with new_file(path, error=CheckpointError) as file:
            write_tensors(tensors, file, {_REPORT: json.dumps(asdict(report))})

    def clear(self) -> None:
        """Remove the files: the run is done."""
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)

    def _path(self, layer: Layer) -> Path | None:
        # numbers, as paths of modules may be too long or too much alike for names of files
        number = self._numbers.setdefault(layer.path, len(self._numbers))
        return None if self._home is None else self._home / f"{number}.safetensors"


def _hash_of_run(walk: Walk, options: Mapping[str, Any]) -> str:
    found = hashlib.blake2b(digest_size=8)
    found.update(repr((str(walk.gm), sorted(options.items()))).encode())
    found.update(tensors_digest(walk.gm.state_dict()).encode())
    # what techniques have changed is reconstructed from what it was before
    originals = {
        f"{path}.{name}": float_value(module, name)
        for path, module in walk.gm.named_modules()
        for name in module.__dict__.get(QuantizationMixin.FLOAT_VALUES, {})
        if name in module._parameters
    }
    found.update(tensors_digest(originals).encode())
    for value in walk.given():
        for _, leaf in leaves(value):
            found.update((tensor_digest(leaf) if isinstance(leaf, Tensor) else repr(leaf)).encode())
    own = torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)
    every = [part["run"].numpy().tobytes() for part in walk.parts.from_each("run", {"run": own})]
    return hashlib.blake2b(b"".join(every), digest_size=8).hexdigest()
