"""Values of all nodes in files, under the paths of their modules: float and simulated."""

from __future__ import annotations

import zipfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fxquant.errors import CheckpointError, ConfigError
from fxquant.graph.pytree import leaves
from fxquant.graph.rewriter import label
from fxquant.inspection.node_errors import measuring
from fxquant.io.state_dicts import write_tensors
from fxquant.io.writing import as_path, new_file
from fxquant.ptq.layer_walk import require_number
from fxquant.ptq.walking.given_simulation import require_simulation
from fxquant.ptq.walking.walk import Environment, FloatEnvironment, batch_walks
from fxquant.quantization.tensor import plain
from fxquant.tracing.signature import input_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import fx

    from fxquant.ptq.walking.walk import Progress
    from fxquant.sim import QuantizationSimModel

Form = Literal["npz", "safetensors"]


def save_layer_outputs(
    sim: QuantizationSimModel,
    data: Any,
    folder: str | Path,
    *,
    form: Form = "npz",
    samples: int | None = 8,
    progress: Progress | None = None,
    max_memory: int | None = None,
    threads: int | None = None,
) -> list[Path]:
    """Write the inputs and the result of every node, of the float model and of the simulation.

    A batch makes two files, `float_0.npz` and `simulation_0.npz`. A value has the path of the
    module that makes it, or the name of its node where no module does, as in the exported file; of
    several tensors each has its place behind that: "lstm[0]".

    Args:
        sim: a calibrated simulation; it is left as it is.
        data: an iterable of batches, as for `compute_encodings`.
        folder: where the files go; it is made when missing.
        form: "npz", written tensor by tensor; or "safetensors", for which those of a batch are
            held in memory.
        samples: samples that are enough; None: all. Whole batches are written.
        progress: called after each node of each batch with (done, in all).
        max_memory: bytes of values that are held in memory besides.
        threads: of torch; None: as they are.

    Returns:
        The files.

    Raises:
        ConfigError: FXQ238, the form is unknown; FXQ296, `samples` is no number.
        CalibrationError: FXQ441 to FXQ445, the model does not take a batch, or the data are none.
        CheckpointError: FXQ542 to FXQ545, a file cannot be written.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(8, 4)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(4, 2)), x)
        >>> sim.compute_encodings([x])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = save_layer_outputs(sim, [x], folder)
        ...     with np.load(files[0]) as found:
        ...         print(files[0].name, sorted(found))
        float_0.npz ['0', 'input', 'input_1_stub']
    """
    require_simulation(sim, "save_layer_outputs")
    if form not in _WRITERS:
        fix = f"use one of {', '.join(map(repr, _WRITERS))}"
        raise ConfigError("FXQ238", f"form={form!r} is unknown", fix=fix)
    require_number("samples", samples, 1, none=True)
    require_number("max_memory", max_memory, 0, none=True)
    gm, home, files = sim.model, as_path(folder, "folder"), list[Path]()
    names = _names(gm)
    with measuring(gm, threads):
        ways = FloatEnvironment(gm, "float"), Environment(gm, "simulation")
        walks = batch_walks(
            gm, data, ways, samples=samples, progress=progress, max_memory=max_memory
        )
        for number, walk in enumerate(walks):
            paths = [home / f"{way.name}_{number}.{form}" for way in ways]
            with ExitStack() as stack:
                writers = [stack.enter_context(_WRITERS[form](path)) for path in paths]
                for node in walk.nodes():
                    if node not in names:
                        continue
                    for way, writer in zip(ways, writers, strict=True):
                        walk.compute(node, way)
                        _add(writer, names[node], walk.value(node, way, 0))
            files += paths
    return files


def _names(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """What values are called; the second of a name, such as an input called as a module, is told
    apart by its node."""
    found: dict[str, fx.Node] = {}
    for node in gm.graph.nodes:
        if node.op not in ("output", "get_attr"):
            name = input_name(node) if node.op == "placeholder" else label(node)
            found[f"{name}@{node.name}" if name in found else name] = node
    return {node: name for name, node in found.items()}


def _add(writer: _Writer, name: str, value: Any) -> None:
    for path, leaf in leaves(value):
        if isinstance(leaf, Tensor):
            writer.add(name + path, plain(leaf).detach().cpu())


class _Writer(Protocol):
    def add(self, name: str, value: Tensor) -> None:
        """Write a tensor."""


class _Npz:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def add(self, name: str, value: Tensor) -> None:
        """Write a tensor; numpy has no bfloat16, whose values float32 holds."""
        array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


class _Safetensors:
    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Keep a copy: others may share its memory, or write into it before all is written."""
        self.found[name] = value.clone(memory_format=torch.contiguous_format)


@contextmanager
def _npz(path: Path) -> Iterator[_Writer]:
    with (
        new_file(path, error=CheckpointError) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        yield _Npz(archive)


@contextmanager
def _safetensors(path: Path) -> Iterator[_Writer]:
    writer = _Safetensors()
    yield writer
    with new_file(path, error=CheckpointError) as file:
        write_tensors(writer.found, file)


_WRITERS = {"npz": _npz, "safetensors": _safetensors}
