"""Inputs as placeholders, the result as the output node, and inputs that a graph does not take."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import TraceError
from fxquant.graph.meta import TensorSpec, spec, spec_of
from fxquant.graph.pytree import fresh_inputs, leaves, map_leaves, modules_of
from fxquant.graph.symbolic_ints import Change, Tracked, Trail, tracked
from fxquant.io.reading import reason
from fxquant.tracing.arguments import plain_tensors
from fxquant.tracing.provenance import Origin
from fxquant.tracing.recorded_call import has_tensor

if TYPE_CHECKING:
    from fxquant.tracing.recorder import Recorder


@dataclass(frozen=True)
class Given:
    """Inputs bound to the signature of forward: positional first, then by keyword."""

    names: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def fresh(self) -> Given:
        """The same inputs in memory of their own."""
        return Given(self.names, fresh_inputs(self.args), fresh_inputs(self.kwargs))


def bind_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
    """Find out which argument of forward each input is."""
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TraceError(
            "FXQ101",
            f"forward of {type(model).__name__} does not take these inputs: {error}",
            at=f"{type(model).__name__}.forward{signature}",
            fix="give the inputs as a tuple, or a dict of keyword arguments, that forward takes",
        ) from error
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name not in bound.arguments or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            count = len(bound.arguments[parameter.name])
            names += [f"{parameter.name}_{i}" for i in range(count)]
        else:
            names.append(parameter.name)
    names = names[: len(bound.args)] + list(bound.kwargs)
    return Given(tuple(names), bound.args, bound.kwargs)


class MissingInputError(LookupError):
    """A placeholder for which there is no value.

    Attributes:
        holder: the placeholder.
        name: the input, as forward calls it.
    """

    def __init__(self, holder: fx.Node, name: str) -> None:
        super().__init__(name)
        self.holder, self.name = holder, name


def input_name(holder: fx.Node) -> str:
    """What a caller knows the input of a placeholder by."""
    return str(holder.target).lstrip("*")


def placeholder_values(
    holders: Sequence[fx.Node], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Values of placeholders in order: by position, by name, or as forward has them by default.

    Args:
        holders: the placeholders of a graph.
        args: positional inputs; what exceeds the placeholders is left out.
        kwargs: inputs by name.

    Raises:
        MissingInputError: one has no value.
    """
    values = []
    for i, holder in enumerate(holders):
        name = input_name(holder)
        if i < len(args):
            values.append(args[i])
        elif name in kwargs:
            values.append(kwargs[name])
        elif holder.args:
            values.append(holder.args[0])
        else:
            raise MissingInputError(holder, name)
    return values


def placeholders(recorder: Recorder, given: Given) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Write a placeholder for each input; returns the inputs to run with."""
    values = [*given.args, *given.kwargs.values()]
    nodes = [recorder.graph.placeholder(name) for name in given.names]
    if nodes:
        recorder.origins.after_inputs = nodes[-1]
    changed = []
    for node, value in zip(nodes, values, strict=True):
        node.meta.update(recorder.place(), source=None, spec=spec_of(value))
        recorder.origins.bind_all(value, Origin(node), _finish, opaque=True)
        changed.append(_number(recorder, node, value))
    count = len(given.args)
    return tuple(changed[:count]), dict(zip(given.kwargs, changed[count:], strict=True))


def _finish(tensor: Tensor, origin: Origin) -> None:
    origin.dims = (Change.SIZE,) * tensor.dim()
    origin.depends = Change.VALUE


def _number(recorder: Recorder, node: Any, value: Any) -> Any:
    if type(value) not in {int, float}:
        return value
    return tracked(value, Trail(recorder, Change.VALUE, lambda: node))


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
    holders = dict(modules_of(recorder.state.root, every_path=True))
    for name, tensor in recorder.state.before:
        owner, _, leaf = name.rpartition(".")
        buffers: Any = holders[owner]._buffers
        now = buffers.get(leaf, tensor) if isinstance(buffers, dict) else tensor
        if isinstance(now, Tensor) and now is not tensor:
            _write_copy(recorder, name, tensor, now)
    after = dict(plain_tensors(recorder.state.root)) if recorder.writer.constants else {}
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


@dataclass(frozen=True)
class Mismatch:
    """Why a model failed on inputs.

    Attributes:
        what: what it raised.
        at: the inputs.
        fix: how they differ from the dummy input.
    """

    what: str
    at: str
    fix: str


def mismatch(
    model: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception
) -> Mismatch:
    """Describe a failed call.

    Args:
        model: the graph.
        args: positional inputs.
        kwargs: keyword inputs.
        error: what the call raised.
    """
    wanted = {str(n.target): spec(n) for n in model.graph.nodes if n.op == "placeholder"}
    names = [*wanted, *(f"input {i}" for i in range(len(wanted), len(args)))]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    told = "; ".join(f"{name}: {_described(value)}" for name, value in given.items())
    differences = [*_other_names(wanted, given), *_other_values(wanted, given)]
    fix = "; ".join(differences) or "pass inputs like those that the model was prepared with"
    return Mismatch(reason(error), told or "no inputs", fix)


def _other_names(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    unknown = [name for name in given if name not in wanted]
    missing = [name for name in wanted if name not in given]
    if not unknown and not missing:
        return []
    return [f"the model takes {', '.join(wanted)}, and was given {', '.join(given) or 'nothing'}"]


def _other_values(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in given.items():
        example = wanted.get(name)
        if not isinstance(example, TensorSpec):
            continue
        if not isinstance(value, Tensor):
            hint = " (torch.from_numpy)" if type(value).__name__ == "ndarray" else ""
            found.append(f"pass {name} as a tensor{hint}, not as a {type(value).__name__}")
        elif value.dtype != example.dtype:
            found.append(f"convert {name} with .to({example.dtype}): the dummy input had this type")
        elif not _same_sizes(value, example):
            found.append(f"{name} was {_sizes(example.shape)} in the dummy input")
    return found


def _same_sizes(value: Tensor, example: TensorSpec) -> bool:
    """Whether sizes are those of the example, the batch aside."""
    return [int(n) for n in value.shape[1:]] == [int(n) for n in example.shape[1:]] and (
        value.dim() == len(example.shape)
    )


def _sizes(shape: Sequence[Any]) -> str:
    return str([int(n) for n in shape])


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        device = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')} {_sizes(value.shape)}{device}"
    kind = type(value).__name__
    return f"{kind} of {len(value)}" if isinstance(value, list | tuple | dict) else kind
