"""Teacher forcing: what the simulation computes, and a graph whose every segment starts from it.

Before: `conv1 → Q → DQ → conv2 → Q → DQ → ...`, where one bit early disturbs all that follows.
After:  each Q is a graph output, and its consumers take a new graph input of the same integer type.

One onnxruntime session then checks all segments at once, each fed with the simulation's integers.
The cut lies at the integers, not at floats, so that onnxruntime fuses the same integer kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from fxquant.errors import ExportError
from fxquant.graph.node_walk import Environment, output_of
from fxquant.graph.pytree import leaves, tensors
from fxquant.nn.modes import evaluating
from fxquant.onnx.parity.index_choices import Choice, Chooser, choice_of
from fxquant.onnx.qparams import type_range
from fxquant.onnx.runs.observed import bound_example
from fxquant.onnx.session import show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fxquant.onnx.lowering.result import LoweredTensor
    from fxquant.onnx.parity.error_bounds import Tolerance

FAR = 0.5  # stands for every distance beyond what was kept
_KEPT = 1 / 32  # steps from a boundary within which positions are kept: a sixteenth of all
_OFF_GRID = 0.02  # steps; (q - z) · s divided by s again is q - z but for a few last bits
FORCED = ".simulated"  # suffix of the graph inputs that replace integer tensors


@dataclass(frozen=True)
class Reference:
    """A quantized tensor of the simulation.

    Attributes:
        tensor: what the lowering says about it.
        integers: its integers, in the type of the grid.
        near: flat positions of elements near a rounding boundary, ascending.
        positions: the values before the quantizer in steps from zero, of the elements in `near`.
    """

    tensor: LoweredTensor
    integers: NDArray[Any]
    near: NDArray[Any]
    positions: NDArray[np.float32]

    def distances(self, flat: NDArray[np.int64], runtime: NDArray[Any]) -> NDArray[np.float64]:
        """Steps between the simulation's values and the boundary to the runtime's integers.

        Args:
            flat: positions of the elements that differ by one step, ascending.
            runtime: the runtime's integers there.

        Returns:
            One distance an element; `FAR` for one that was not near any boundary.
        """
        zero = float(self.tensor.zero_point.reshape(-1)[0])
        ours = self.integers.reshape(-1)[flat].astype(np.float64)
        at = np.searchsorted(self.near, flat)
        found = np.isin(flat, self.near, assume_unique=True)
        boundary = (ours + runtime) / 2 - zero
        result = np.full(flat.shape, FAR)
        result[found] = np.abs(self.positions[at[found]] - boundary[found])
        return result


@dataclass
class ReferenceRun:
    """What the simulation computed on the example.

    Attributes:
        feeds: graph inputs by name.
        tensors: quantized tensors in graph order.
        choices: what it chose by floats.
        outputs: graph outputs by name.
        missed: quantized tensors of the graph that the simulation has no node for.
    """

    feeds: dict[str, NDArray[Any]] = field(default_factory=dict)
    tensors: list[Reference] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)


def teach(
    gm: fx.GraphModule,
    example: tuple[tuple[Any, ...], Mapping[str, Any]],
    wanted: Sequence[LoweredTensor],
    tolerances: Mapping[str, Tolerance],
    choosers: Sequence[Chooser] = (),
) -> ReferenceRun:
    """Run the simulation node by node and keep its integers.

    Args:
        gm: simulated model; it is run in evaluation mode without gradients.
        example: positional and keyword inputs.
        wanted: quantized activations.
        tolerances: by `quantized_name`: how near to a boundary a value is kept.
        choosers: nodes that choose by floats.

    Raises:
        ExportError: FXQ562 a tensor holds NaN or infinity, FXQ563 it is not on its grid.
    """
    reference_run = ReferenceRun()
    recorder = _Recorder(gm, wanted, tolerances, reference_run)
    recorder.choosers = {chooser.node: chooser for chooser in choosers}
    with torch.no_grad(), evaluating(gm):
        result = output_of(recorder, bound_example(gm, example))
    found = (value for _, value in leaves(result) if value is not None)
    reference_run.outputs = {str(i): _array(value) for i, value in enumerate(found)}
    reference = {id(t.tensor) for t in reference_run.tensors}
    reference_run.missed = [t.quantized_name for t in wanted if id(t) not in reference]
    return reference_run


class _Recorder(Environment):
    """Takes each wanted tensor before and after its quantizer."""

    def __init__(
        self,
        gm: fx.GraphModule,
        wanted: Sequence[LoweredTensor],
        tolerances: Mapping[str, Tolerance],
        reference_run: ReferenceRun,
    ) -> None:
        super().__init__(gm)
        self.tolerances, self.reference_run = tolerances, reference_run
        self.choosers: dict[str, Chooser] = {}
        self.wanted: dict[str, list[LoweredTensor]] = {}
        for tensor in wanted:
            if tensor.scale.size == 1:  # nothing reads activations per channel as integers
                self.wanted.setdefault(tensor.node, []).append(tensor)

    def compute(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        wanted = self.wanted.get(node.name)
        if not wanted:
            result = super().compute(node, args, kwargs)
            self._keep_choice(node, (args, kwargs), result)
            return result
        inputs: _Seen = {}
        outputs: _Seen = {}
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        with (
            _watched(getattr(module, "input_quantizers", ()), inputs),
            _watched(getattr(module, "output_quantizers", ()), outputs),
        ):
            result = super().compute(node, args, kwargs)
        made = tensors(result)
        for tensor in wanted:
            seen = inputs if tensor.kind == "input" else outputs
            before, after = seen.get(tensor.index) or (made[tensor.index], made[tensor.index])
            window = max(self.tolerances[tensor.quantized_name].drift, _KEPT)
            self.reference_run.tensors.append(_reference(tensor, before, after, window))
        return result

    def _keep_choice(self, node: fx.Node, operands: Any, result: Any) -> None:
        chooser = self.choosers.get(node.name)
        given = tensors(operands) if chooser is not None else []
        if chooser is not None and given:
            choice = choice_of(chooser, given[0], tensors(result))
            if choice is not None:
                self.reference_run.choices.append(choice)


_Seen = dict[int, tuple[Tensor, Tensor]]


@contextmanager
def _watched(quantizers: Iterable[nn.Module | None], seen: _Seen) -> Iterator[None]:
    """Keep what each quantizer is given and gives, by its place in the list.

    One that stands at several places is told apart by the order of its calls.
    """
    slots: dict[int, list[int]] = {}
    distinct: dict[int, nn.Module] = {}
    for i, quantizer in enumerate(quantizers):
        if quantizer is not None:
            slots.setdefault(id(quantizer), []).append(i)
            distinct[id(quantizer)] = quantizer

    def keep(module: nn.Module, args: tuple[Any, ...], result: Tensor) -> None:
        free = slots[id(module)]
        seen[free.pop(0) if len(free) > 1 else free[0]] = (args[0], result)

    handles = [q.register_forward_hook(keep) for q in distinct.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _array(value: Any) -> NDArray[Any]:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    # a result that carries its encoding is a subclass; only its numbers are wanted
    # not ascontiguousarray, which makes a vector of a single number
    plain = value.detach().as_subclass(Tensor).cpu()
    plain = plain.float() if plain.dtype == torch.bfloat16 else plain  # numpy has no such type
    return np.asarray(plain.numpy(), order="C")


def _reference(tensor: LoweredTensor, before: Tensor, after: Tensor, window: float) -> Reference:
    scale = tensor.scale.reshape(-1)[0]
    zero = int(tensor.zero_point.reshape(-1)[0])
    # infinity is padding that a max pooling steps over: the end of the type
    low, high = (np.float32(end - zero) for end in type_range(tensor.dtype))
    positions = _array(after).astype(np.float32, copy=False) / scale
    positions = np.where(np.isinf(positions), np.clip(positions, low, high), positions)
    real = _array(before).astype(np.float32, copy=False).reshape(-1) / scale
    half = after.dtype in (torch.float16, torch.bfloat16)
    # in half precision (q - z) * s may lie nearer to another integer: it is what q was made of
    # that tells which
    source = np.clip(real.reshape(positions.shape), low, high) if half else positions
    centred = np.rint(source)
    _check(tensor, positions, centred, torch.finfo(after.dtype).eps if half else 1e-6)
    integers = (centred + np.float32(zero)).astype(tensor.dtype.numpy())
    real[np.isinf(real)] = 0.0  # at no boundary
    # a boundary lies half-way between two integers
    offsets = np.abs(real - np.floor(real) - np.float32(0.5))
    near = np.flatnonzero(offsets <= np.float32(window) + np.float32(1e-6))
    return Reference(tensor, integers, near.astype(np.min_scalar_type(real.size)), real[near])


def _check(
    tensor: LoweredTensor, positions: NDArray[Any], centred: NDArray[Any], relative: float
) -> None:
    if positions.size == 0:
        return
    off, where = float(np.abs(positions - centred).max()), tensor.module or tensor.node
    if np.isnan(off):
        what = f"the simulation of {where!r} holds NaN or infinity on the example"
        raise ExportError(
            "FXQ562", what, at=tensor.node, fix="pass an example like the calibration data"
        )
    # in 16 bits the quotient itself is good to a few hundredths of a step
    if off > max(_OFF_GRID, float(np.abs(centred).max()) * relative):
        what = f"the simulation of {where!r} is not on the grid that was exported"
        raise ExportError(
            "FXQ563", what, at=tensor.node, fix="report this: it is an error in fxquant"
        )


def cut(model: ir.Model, reference_run: ReferenceRun) -> dict[str, NDArray[Any]]:
    """Cut the graph at every quantized activation, in place.

    Args:
        model: the lowered graph.
        reference_run: what the simulation computed; tensors it lacks stay uncut.

    Returns:
        Feeds of the cut graph, the model's own inputs included.
    """
    integers = {t.tensor.quantized_name: t.integers for t in reference_run.tensors}
    choices = {c.chooser.places: c.places for c in reference_run.choices}
    return reference_run.feeds | cut_at(model, integers | choices)


def cut_at(model: ir.Model, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Give the consumers of named values graph inputs, and make the values outputs, in place.

    Args:
        model: the graph.
        arrays: what the consumers are to read, by the values' names, in the values' types.

    Returns:
        Feeds of the new inputs.
    """
    values = {v.name: v for node in model.graph for v in node.outputs}
    feeds = {}
    for name, array in arrays.items():
        kind = ir.DataType.from_numpy(array.dtype)
        _replace(model.graph, values[name], name + FORCED, array.shape, kind)
        feeds[name + FORCED] = array
    show(model, arrays)
    return feeds


def _replace(
    graph: ir.Graph, value: ir.Value, name: str, example: Sequence[int], dtype: ir.DataType
) -> None:
    """Give the consumers of `value` a graph input."""
    shape = value.shape if value.shape is not None else ir.Shape(example)
    kind = ir.TensorType(dtype)
    fed = ir.Value(name=name, shape=ir.Shape(shape), type=kind)
    graph.inputs.append(fed)
    for use in list(value.uses()):
        use.node.replace_input_with(use.idx, fed)
