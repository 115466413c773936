"""A model's result as the output node of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxquant.errors import TraceError
from fxquant.graph.arguments import plain_tensors
from fxquant.graph.call_data import has_tensor
from fxquant.graph.sizes import Change, Tracked
from fxquant.graph.structure import leaves, map_leaves

if TYPE_CHECKING:
    from fxquant.graph.recorder import Recorder

_PLAIN = (
    Tensor, torch.Size, Tracked, bool, int, float, complex, str, type(None), torch.dtype,
    torch.device,
)  # fmt: skip


def write_output(recorder: Recorder, value: Any) -> tuple[str, ...]:
    """Write the output node; returns the paths of what a graph cannot return.

    Tuples, lists, dicts and named tuples are written as they are; dataclasses are built again by
    calling their class. Other objects (caches, distributions) become None.
    """
    dropped: list[str] = []

    def keep(leaf: Any) -> Any:
        return leaf if isinstance(leaf, _PLAIN) else None

    for path, leaf in leaves(value):
        if not isinstance(leaf, _PLAIN):
            dropped.append(f"output{path} ({type(leaf).__name__})")
    kept = map_leaves(value, keep)
    if not has_tensor(kept):
        raise TraceError(
            "FXQ102",
            f"the model returns {type(value).__name__}, in which there is no tensor",
            at=type(recorder.state.root).__name__,
            fix="let forward return tensors, or tuples, lists, dicts or dataclasses of tensors",
        )
    recorder.writer.meta = recorder.place()
    written = recorder.writer.write(kept)
    node = recorder.graph.output(written)
    node.meta.update(recorder.place(), source=None)
    return tuple(dropped)


def write_back(recorder: Recorder) -> None:
    """State that the model replaced by new tensors: the graph copies the new values into it.

    ``self.buffer = self.buffer * 0.9`` binds a new tensor to the name; a graph has no names, so it
    writes to the old tensor, which is the same for everybody who reads it. A plain attribute that
    carries a tensor from one call to the next is treated alike.
    """
    recorder.writer.meta = {**recorder.place(), "source": None}
    for name, tensor in recorder.state.before:
        owner, _, leaf = name.rpartition(".")
        buffers: Any = recorder.state.root.get_submodule(owner)._buffers
        now = buffers.get(leaf, tensor) if isinstance(buffers, dict) else tensor
        if isinstance(now, Tensor) and now is not tensor:
            _write_copy(recorder, name, tensor, now)
    after = dict(plain_tensors(recorder.state.root))
    for constant, met in zip(recorder.writer.constants, recorder.writer.kept, strict=True):
        now = after.get(constant.attribute or "")
        if now is not None and now is not met:
            _write_copy(recorder, constant.attribute or "", met, now)


def _write_copy(recorder: Recorder, name: str, tensor: Tensor, now: Tensor) -> None:
    origin = recorder.origins.find(now)
    if origin is None or now.is_set_to(tensor):  # `buffer.to(device)` there
        return
    other = now.shape != tensor.shape or now.dtype != tensor.dtype
    if other and origin.depends is not Change.VALUE and recorder.state.is_unsaved(name):
        # a cache that is made again for inputs of another size: the graph makes it in every call
        recorder.state.caches[name] = now.detach().clone()
        return
    if other:
        old, new = tuple(tensor.shape), tuple(now.shape)
        raise TraceError(
            "FXQ108",
            f"forward replaces {name!r} ({old}, {tensor.dtype}) by {new}, {now.dtype}",
            at=recorder.origins.node(recorder.writer.origin(now)),
            fix="keep state of changing shape outside of the model, or make the module that "
            "holds it a leaf",
        )
    held = recorder.writer.write(tensor)
    value = recorder.writer.write(now)
    if now.requires_grad:
        value = recorder.graph.call_method("detach", (value,))
        value.meta.update(recorder.writer.meta, spec=held.meta["spec"])
    node = recorder.graph.call_method("copy_", (held, value))
    node.meta.update(recorder.writer.meta, spec=held.meta["spec"], mutates=True)
