"""A simulation as rows: every operator with its grid, its kernel and the reasons.

Nothing here builds a simulation: what is asked about is given, calibrated or not, and is only read.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fxquant import ops
from fxquant.graph.pass_infra import state_of
from fxquant.graph.rewriter import label
from fxquant.inspection.operator_kernels import FLOAT, INTEGER, Kernel, kernels_of
from fxquant.nn import QuantizationMixin
from fxquant.placement.dataflow import is_float_spec, resolve_grids
from fxquant.quantization import QuantizerBase
from fxquant.quantization.affine import AffineQuantizer, BiasQuantizeDequantize
from fxquant.quantization.encodings import AffineEncoding

if TYPE_CHECKING:
    from collections.abc import Iterator

    import networkx as nx
    from torch import fx

    from fxquant.sim import QuantizationSimModel

    Grids = dict[fx.Node, tuple[QuantizerBase | None, ...]]


@dataclass(frozen=True)
class InspectedGrid:
    """The grid of a tensor.

    Attributes:
        type: such as "uint8", "int8 x 64 channels" or "float8_e4m3fn".
        symmetric: whether the zero point lies in the middle by construction.
        frozen: whether calibration leaves its range as it is.
        scale: smallest and largest step over the channels; None before calibration.
        zero_point: the integer that stands for 0.0; None before calibration, or where channels have
            several.
        range: smallest and largest real value of the grid; None before calibration.
    """

    type: str
    symmetric: bool
    frozen: bool
    scale: tuple[float, float] | None
    zero_point: int | None
    range: tuple[float, float] | None


@dataclass(frozen=True)
class InspectionRow:
    """One operator of the simulated graph.

    Attributes:
        module: module path, or node name where there is no module.
        operator: name of the operator's row; empty for what has none.
        output: type of the output's grid, such as "uint8"; "float" where there is none.
        weight: type of the weight's grid, such as "int8 x 64 channels"; empty where there is none.
        source: the user's file and line.
        why: reasons, in the order in which they were found.
        node: name of the node in `sim.model.graph`.
        inputs: names of the nodes whose tensors it reads.
        input_shapes: their recorded shapes; the batch is that of the example.
        shapes: recorded shapes of its results.
        dtype: type of its first result in the float model, such as "float32".
        grid: grid of its first result; None for floating point.
        weight_grid: grid of its weight.
        owner: path of the module that holds the grid of its result, which may be that of a producer
            or one that several modules share; empty for floating point.
        precision: types of the operands that it is computed with, such as "uint8 x int8", or its
            dtype where it is computed in floating point.
        kind: "integer", "float", "moves" (only moves values) or "boundary" (a stub).
        kernel: what the target runs, such as "QLinearConv", where that was asked of the runtime;
            else the kind, or "in conv1" for what is computed in the kernel of another operator.
        reason: why it is computed in floating point; empty where it is not.
    """

    module: str
    operator: str
    output: str
    weight: str
    source: str
    why: tuple[str, ...]
    node: str = ""
    inputs: tuple[str, ...] = ()
    input_shapes: tuple[tuple[int, ...], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    dtype: str = ""
    grid: InspectedGrid | None = None
    weight_grid: InspectedGrid | None = None
    owner: str = ""
    precision: str = ""
    kind: str = ""
    kernel: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Inspection:
    """The operators of a model on a target; prints as a table.

    Attributes:
        target: name of the target.
        rows: one an operator, in the order of execution.
        calibrated: whether every grid has a range.
        runtime: what `kernel` was read from, such as "onnxruntime 1.20.0"; empty for the rules of
            the target.
    """

    target: str
    rows: tuple[InspectionRow, ...]
    calibrated: bool = False
    runtime: str = ""

    def to_json(self) -> str:
        """The operators as JSON text."""
        return json.dumps(asdict(self), indent=1)

    def to_networkx(self) -> nx.DiGraph:
        """The graph: a node for each row with its fields, an edge for each tensor that is read.

        Nodes are called as those of `sim.model.graph`; those that are no operators, such as inputs
        and elements of tuples, have `operator` "" and no other field.
        """
        from fxquant.inspection.formats import to_networkx

        return to_networkx(self)

    def to_model_explorer(self, field: str = "precision") -> str:
        """Node data for Google's Model Explorer, to be laid over the exported ONNX file.

        Args:
            field: the field of the rows that is shown: "precision", "kind", "kernel", "output",
                "weight", "operator" or "module" as a text, "scale" or "zero_point" of the output's
                grid as a number.

        Returns:
            JSON text: values by the names of the file's nodes, with a colour each.

        Raises:
            ConfigError: FXQ279, there is no such field.
        """
        from fxquant.inspection.formats import to_model_explorer

        return to_model_explorer(self, field)

    def explain(self, name: str) -> str:
        """Why operators are what they are, and what decided for them: a chain of reasons.

        Args:
            name: module path, name of a node, or a glob; a container stands for what is below it.

        Raises:
            SelectorError: FXQ739, nothing is called so.
        """
        from fxquant.inspection.why_chains import explain

        return explain(self, name)

    def text(self, width: int | None = 80) -> str:
        """The table, and below it what is computed in floating point and why.

        Args:
            width: columns of the text; None: as wide as its longest cells, and with shapes, scales,
                owners, reasons and lines of source.
        """
        from fxquant.inspection.formats import to_text

        return to_text(self, width)

    def __str__(self) -> str:
        return self.text()


def inspect_simulation(sim: QuantizationSimModel, *, runtime: bool = False) -> Inspection:
    """The operators of a simulation; it is not changed.

    Args:
        sim: the simulation, calibrated or not.
        runtime: read the kernels from the graph that onnxruntime makes of the exported model; it
            must be calibrated.

    Raises:
        UncalibratedError: a grid has no range, which the runtime wants.
        ExportError: the model has no form in ONNX, which the runtime wants.
    """
    gm = sim.model
    grids = resolve_grids(gm)
    found = kernels_of(gm, sim.target, grids)
    named = ""
    if runtime:
        from fxquant.inspection.runtime_kernels import runtime_kernels

        found, named = runtime_kernels(sim, found)
    reader = _Reader(gm, grids)
    rows = tuple(reader.row(node, kernel) for node, kernel in found.items())
    return Inspection(sim.target.name, rows, is_calibrated(gm), named)


def is_calibrated(gm: fx.GraphModule) -> bool:
    """Whether every quantizer of a simulated graph has a range."""
    return all(m.is_initialized() for m in gm.modules() if isinstance(m, QuantizerBase))


def describe_grid(quantizer: QuantizerBase) -> InspectedGrid:
    """The grid of a quantizer as plain numbers."""
    encoding = quantizer.get_encodings()
    scale = zero = ends = None
    if isinstance(encoding, AffineEncoding):
        scale = (float(encoding.scale.min()), float(encoding.scale.max()))
        ends = (float(encoding.min.min()), float(encoding.max.max()))
        zeros = encoding.zero_point.unique()
        zero = int(zeros) if zeros.numel() == 1 else None
    return InspectedGrid(
        grid_type(quantizer), bool(getattr(quantizer, "symmetric", True)),
        not quantizer.overwritable, scale, zero, ends,
    )  # fmt: skip


def grid_type(quantizer: QuantizerBase | None) -> str:
    """Type of a grid, such as "uint8" or "int8 x 64 channels"; "float" where there is none."""
    if quantizer is None:
        return "float"
    kind, shape = _plain_type(quantizer), tuple(getattr(quantizer, "shape", ()))
    if getattr(quantizer, "block_size", None) is not None:
        return f"{kind} x {math.prod(shape)} blocks"
    channels = max(shape, default=1)
    return f"{kind} x {channels} channels" if channels > 1 else kind


def _plain_type(quantizer: QuantizerBase) -> str:
    if isinstance(quantizer, BiasQuantizeDequantize):
        return "int32"
    if isinstance(quantizer, AffineQuantizer):
        return f"{'int' if quantizer.signed else 'uint'}{quantizer.bitwidth}"
    narrow = getattr(quantizer, "dtype", None)
    return str(quantizer) if narrow is None else str(narrow).removeprefix("torch.")


class _Reader:
    """Makes rows of nodes."""

    def __init__(self, gm: fx.GraphModule, grids: Grids) -> None:
        self.gm, self.grids, self.why = gm, grids, state_of(gm).why
        self.owners: dict[int, str] = {}
        for path, module in gm.named_modules():
            if isinstance(module, QuantizationMixin):
                for _, quantizer in module.output_quantizers.active():
                    self.owners.setdefault(id(quantizer), path)

    def row(self, node: fx.Node, kernel: Kernel) -> InspectionRow:
        """The row of a node."""
        row = ops.row_of(node, self.gm)
        made = self.grids[node][0] if self.grids[node] else None
        weight = self._weight(node)
        specs = _specs(node)
        read = [n for n in node.all_input_nodes if _specs(n)]
        shapes = (_shape(s) for n in read for s in _specs(n))
        dtype = str(specs[0].dtype).removeprefix("torch.") if specs else ""
        return InspectionRow(
            module=label(node), operator=row.name if row else "", output=grid_type(made),
            weight=grid_type(weight) if weight is not None else "",
            source=str(node.meta.get("source") or ""), why=tuple(self.why.get(label(node), ())),
            node=node.name, inputs=tuple(n.name for n in read), input_shapes=tuple(shapes),
            shapes=tuple(map(_shape, specs)), dtype=dtype,
            grid=None if made is None else describe_grid(made),
            weight_grid=None if weight is None else describe_grid(weight),
            owner=self.owners.get(id(made), ""),
            precision=self._precision(node, kernel, weight) or dtype,
            kind=kernel.kind, kernel=kernel.name, reason=kernel.reason,
        )  # fmt: skip

    def _weight(self, node: fx.Node) -> QuantizerBase | None:
        module = self._module(node)
        if isinstance(module, QuantizationMixin) and "weight" in module.param_quantizers:
            found: QuantizerBase | None = module.param_quantizers["weight"]
            return found
        return None

    def _module(self, node: fx.Node) -> Any:
        return self.gm.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _precision(self, node: fx.Node, kernel: Kernel, weight: QuantizerBase | None) -> str:
        """Types of the operands of what is computed in integers; empty for floating point."""
        if kernel.kind == FLOAT:
            return ""
        if kernel.kind != INTEGER or kernel.name.startswith("in "):
            made = self.grids[node][0] if self.grids[node] else None
            return _plain_type(made) if made is not None else ""
        own = getattr(self._module(node), "input_quantizers", ())
        kinds = []
        for index, operand in enumerate(node.all_input_nodes):
            if not _is_float(operand):
                continue
            quantizer = own[index] if index < len(own) else None
            quantizer = quantizer or (self.grids[operand] or (None,))[0]
            kinds.append(_plain_type(quantizer) if quantizer is not None else "float")
        if weight is not None:
            kinds.append(_plain_type(weight))
        return " x ".join(kinds)


def _specs(node: fx.Node) -> list[Any]:
    """What was recorded of every tensor in the value of a node."""
    return list(_tensors_of(node.meta.get("spec")))


def _tensors_of(spec: Any) -> Iterator[Any]:
    if hasattr(spec, "dtype"):  # asked first: such a spec is a tuple itself
        yield spec
    elif isinstance(spec, dict | list | tuple):
        for part in spec.values() if isinstance(spec, dict) else spec:
            yield from _tensors_of(part)


def _is_float(node: fx.Node) -> bool:
    return any(is_float_spec(s) for s in _specs(node))


def _shape(spec: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in spec.shape)
