"""Time beside error: what each operator of a QDQ file takes in onnxruntime, and what it costs.

One row for each operator of the file. Its time is that of the kernels it became, measured in the
run that users get; the conversions between integers and floats around its result are counted apart.
Its error is that of the quantized tensor it makes, against the same model in floating point.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fxquant.analysis.tensor_errors import TensorError, tensor_errors
from fxquant.errors import ConfigError
from fxquant.graph.pytree import tensors
from fxquant.io.text_tables import table
from fxquant.onnx.io.limits import require_runnable
from fxquant.onnx.io.reader import read_model, readable
from fxquant.onnx.ort.coverage import coverage
from fxquant.onnx.ort.dequantized import without_pairs
from fxquant.onnx.ort.feeds import feeds_of, with_nan
from fxquant.onnx.ort.owners import CONVERSIONS, Owners
from fxquant.onnx.runs.observed import bound_example
from fxquant.onnx.session import KernelTime, kernel_times, packed
from fxquant.sim import QuantizationSimModel

if TYPE_CHECKING:
    import onnx_ir as ir

    from fxquant.onnx.ort.feeds import Data


@dataclass(frozen=True)
class ProfileRow:
    """One operator.

    Attributes:
        node: its name in the file; in files made here the path of the module.
        operator: its type in the file.
        kernel: what onnxruntime runs for it; empty where it runs nothing.
        integer: whether that computes on integers.
        seconds: time of its kernels, without conversions.
        conversions: time of Quantize- and DequantizeLinear around its result.
        share: both, as a share of the whole.
        float_seconds: its time in the model without grids; None where it has no kernel there.
        error: error of the quantized tensor that it makes; None where it makes none.
    """

    node: str
    operator: str
    kernel: str
    integer: bool
    seconds: float
    conversions: float
    share: float
    float_seconds: float | None
    error: TensorError | None


@dataclass(frozen=True)
class Profile:
    """Operators by time, the slowest first.

    Attributes:
        rows: one an operator.
        seconds: time of all kernels.
        float_seconds: time of all kernels of the model without grids.
        threads: threads within an operator.
    """

    rows: tuple[ProfileRow, ...]
    seconds: float
    float_seconds: float
    threads: int

    def to_json(self) -> str:
        """The profile as JSON; seconds, decibels and steps."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        return self.text()

    def text(self, top: int | None = None) -> str:
        """The table, of all operators or of the slowest ones."""
        shown = self.rows[:top]
        rest = self.rows[len(shown) :]
        heads = ("node", "operator", "kernel", "ms", "%", "convert ms", "float ms", "SQNR dB",
                 "own dB", "mean steps", "max steps")  # fmt: skip
        lines = [table(heads, [_cells(row) for row in shown])]
        if rest:
            left = sum(r.seconds + r.conversions for r in rest)
            lines.append(f"... and {len(rest)} more operators, {left * 1e3:.3f} ms")
        return "\n".join([*lines, "", self._sum()])

    def _sum(self) -> str:
        whole = self.seconds or 1.0
        floats = sum(r.seconds for r in self.rows if not r.integer) / whole
        conversions = sum(r.conversions for r in self.rows) / whole
        return (
            f"{self.seconds * 1e3:.3f} ms in kernels on {self.threads} thread(s), "
            f"{self.float_seconds * 1e3:.3f} ms without grids; {floats:.1%} in floating-point "
            f"operators, {conversions:.1%} in conversions\n"
            "SQNR: of the tensor in the quantized model against the model without grids; own: if "
            "only this tensor were quantized; a step is the tensor's scale"
        )


def profile(
    model: str | Path | QuantizationSimModel, data: Data | None = None, *,
    reference: str | Path | None = None, rounds: int = 20, threads: int = 1,
) -> Profile:  # fmt: skip
    """Measure each operator of a quantized model in onnxruntime, and its error.

    Args:
        model: a QDQ file of any tool, or a calibrated simulation.
        data: inputs by name or in order, or the path of an `.npz` file; a simulation has those it
            was made with.
        reference: float ONNX file whose values of the same names are the truth; default: the
            simulation's own float model, or the file without the grids of its activations (its
            weights as they are stored).
        rounds: measured runs.
        threads: threads within an operator.

    Raises:
        ConfigError: FXQ760 there is no data, or it is NaN; FXQ583 or FXQ584 it cannot be used;
            FXQ762 `reference` is the file of another network.
        ExportError: the file cannot be read, or onnxruntime cannot run it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.randn(1, 3, 8, 8)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), x, "min_max")
        >>> sim.compute_encodings([x])
        >>> [row.kernel for row in profile(sim).rows if row.integer]
        ['QLinearConv']
    """
    if isinstance(model, QuantizationSimModel):
        with tempfile.TemporaryDirectory(prefix="fxquant-profile-") as folder:
            return _of_simulation(model, Path(folder), data, rounds=rounds, threads=threads)
    if data is None:
        what = "a file is profiled on data, and none is given"
        raise ConfigError("FXQ760", what, fix="pass data=, or --data FILE: arrays by input name")
    truth = None if reference is None else read_model(reference)
    return _of_file(model, data, truth, rounds=rounds, threads=threads)


def _of_simulation(
    sim: QuantizationSimModel, folder: Path, data: Data | None, *, rounds: int, threads: int
) -> Profile:
    from fxquant.onnx.lowering.lower import lower

    sim.export(folder, "model", prove=False)
    example = sim.example
    truth = lower(sim.get_original_model().eval(), example).model
    given = tensors(bound_example(sim.model, example)) if data is None else data
    return _of_file(folder / "model.onnx", given, truth, rounds=rounds, threads=threads)


def _of_file(
    path: str | Path, data: Data, truth: ir.Model | None, *, rounds: int, threads: int
) -> Profile:
    model = read_model(path)
    feeds = feeds_of(model.graph, data)
    with readable(path):
        require_runnable(path, model, feeds)
    if broken := with_nan(feeds):
        what = f"the data holds NaN in {', '.join(broken)}: errors would say nothing"
        raise ConfigError("FXQ760", what, fix="leave the samples out, or clean the data")
    stripped = without_pairs(model)
    times = kernel_times(path, feeds, rounds=rounds, threads=threads)
    with packed(stripped) as source:
        plain = kernel_times(source, feeds, rounds=rounds, threads=threads)
    integer = {r.name for r in coverage(path, model=model) if r.integer}
    owners = Owners(model.graph)
    errors = tensor_errors(path, model, truth or stripped, feeds)
    if truth is not None:
        _require_same_network(model, errors)
    return _merged(owners, (times, plain), errors, integer, threads)


def _require_same_network(model: ir.Model, errors: Mapping[str, TensorError]) -> None:
    """Refuse a float file that lacks most of the quantized tensors.

    Those at the borders tell nothing: in a float file they have the names of inputs and outputs.

    Raises:
        ConfigError: FXQ762.
    """
    borders = set(model.graph.inputs) | set(model.graph.outputs)
    quantized = [
        n.outputs[0].name
        for n in model.graph
        if n.op_type == "QuantizeLinear"
        and n.inputs[0] not in borders
        and not any(v in borders for user in n.outputs[0].consumers() for v in user.outputs)
    ]
    found = sum(name in errors for name in quantized)
    if 2 * found < len(quantized):
        what = "the float file is of another network, or names its values otherwise"
        what = f"{what}: it has {found} of {len(quantized)} quantized tensors"
        raise ConfigError("FXQ762", what, fix="give the float file that was quantized, or none")


def _merged(
    owners: Owners, times: tuple[tuple[KernelTime, ...], tuple[KernelTime, ...]],
    errors: Mapping[str, TensorError], integer: set[str], threads: int,
) -> Profile:  # fmt: skip
    quantized, plain = times
    parts: dict[str, _Part] = {}
    for entry in quantized:
        part = parts.setdefault(owners.of(entry), _Part())
        part.add(entry)
    floats: dict[str, float] = {}
    for entry in plain:
        name = owners.of(entry)
        floats[name] = floats.get(name, 0.0) + entry.seconds
    found: dict[str, TensorError] = {}
    for tensor, error in errors.items():
        found[owners.of_tensor(tensor, set(parts))] = error
    total = sum(e.seconds for e in quantized)
    rows = [
        ProfileRow(
            node=name, operator=owners.operator(name), kernel=part.kernel,
            integer=name in integer and part.seconds > 0, seconds=part.seconds,
            conversions=part.conversions, share=(part.seconds + part.conversions) / (total or 1.0),
            float_seconds=floats.get(name), error=found.get(name),
        )
        for name, part in {**{n: _Part() for n in found}, **parts}.items()
    ]  # fmt: skip
    rows.sort(key=lambda r: -(r.seconds + r.conversions))
    return Profile(tuple(rows), total, sum(e.seconds for e in plain), threads)


class _Part:
    """The kernels of one operator."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.conversions = 0.0
        self._kernels: dict[str, float] = {}

    def add(self, entry: KernelTime) -> None:
        """Count one kernel."""
        if entry.operator in CONVERSIONS:
            self.conversions += entry.seconds
        else:
            self.seconds += entry.seconds
            kernels = self._kernels
            kernels[entry.operator] = kernels.get(entry.operator, 0.0) + entry.seconds

    @property
    def kernel(self) -> str:
        """The one that takes most of the time."""
        return max(self._kernels, key=self._kernels.__getitem__, default="")


def _cells(row: ProfileRow) -> tuple[object, ...]:
    error = row.error
    float_ms = "" if row.float_seconds is None else f"{row.float_seconds * 1e3:.3f}"
    numbers = ("", "", "", "") if error is None else (
        f"{error.sqnr:.1f}", f"{error.own_sqnr:.1f}", f"{error.mean_steps:.2f}",
        f"{error.max_steps:.1f}",
    )  # fmt: skip
    kernel = row.kernel if row.integer or not row.kernel else f"{row.kernel} (float)"
    return (row.node, row.operator, kernel, f"{row.seconds * 1e3:.3f}", f"{row.share:.1%}",
            f"{row.conversions * 1e3:.3f}", float_ms, *numbers)  # fmt: skip
