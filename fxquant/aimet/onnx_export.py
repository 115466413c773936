"""Files from a simulation, asked for in AIMET's ways; the work is that of `fxquant.export`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxquant.encodings.file import as_text
from fxquant.errors import ConfigError
from fxquant.export_methods import ExportMethods
from fxquant.graph.rewriter import label
from fxquant.io.writing import as_path, checked_prefix, made_folder, write_text

if TYPE_CHECKING:
    from fxquant.onnx.parity.report import ParityReport
    from fxquant.sim import QuantizationSimModel

# arguments of torch's exporter that say how it works, not what it writes
_WITHOUT_MEANING = frozenset(
    ("do_constant_folding", "dynamic_axes", "dynamic_shapes", "dynamo", "export_params",
     "external_data", "fallback", "keep_initializers_as_inputs", "operator_export_type",
     "optimize", "report", "training", "verbose", "verify")
)  # fmt: skip
_OURS = ("opset", "prove", "contrib", "deploy", "encoding_version")
_INSTEAD = {
    "propagate_encodings": "leave it out: the ONNX file has the grid of every tensor",
    "export_to_torchscript": "leave it out: run the ONNX file, or sim.model",
}


@dataclass(frozen=True)
class OnnxExportApiArgs:
    """Arguments of `torch.onnx.export`, for `sim.export(onnx_export_args=...)`.

    Attributes:
        opset_version: ONNX opset.
        input_names: must be those that the model has.
        output_names: must be None.
    """

    opset_version: int | None = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None


def export_files(
    sim: QuantizationSimModel,
    export: Callable[..., ParityReport],
    where: tuple[str | Path, str, Any],
    onnx_export_args: Any,
    asked: Mapping[str, bool],
    options: dict[str, Any],
    *,
    keep_model: bool,
    encodings_prefix: str | None,
) -> ParityReport:
    """Export to a folder and a prefix, with the encodings keyed by module beside.

    Raises:
        ConfigError: FXQ905, an argument asks for what cannot be had.
    """
    for name, wanted in asked.items():
        if wanted:
            raise ConfigError("FXQ905", f"{name}=True cannot be had", fix=_INSTEAD[name])
    for name in options:
        if name not in _OURS:
            fix = f"beside AIMET's there are {', '.join(_OURS)}"
            raise ConfigError("FXQ905", f"export has no argument {name!r}", fix=fix)
    path, prefix, example = where
    options = {**torch_options(sim, onnx_export_args), **options}
    own = checked_prefix(encodings_prefix or prefix)
    folder = as_path(path)
    if keep_model and own == prefix:
        report = export(path, prefix, example, **options)
    else:
        with made_folder(folder) as home, tempfile.TemporaryDirectory(dir=home) as work:
            report = export(work, prefix, example, **options)
            os.replace(Path(work) / f"{prefix}.encodings", home / f"{own}.encodings")
            for file in sorted(Path(work).iterdir()) if keep_model else ():
                os.replace(file, home / file.name)
    write_text(folder / f"{own}_torch.encodings", as_text(sim.get_encodings()))
    return report


def torch_options(sim: QuantizationSimModel, given: Any) -> dict[str, Any]:
    """What arguments of torch's exporter mean here.

    Args:
        sim: the simulation.
        given: a dict, an object with attributes, or None.

    Raises:
        ConfigError: FXQ905, one asks for what cannot be had.
    """
    if given is None:
        return {}
    named: dict[str, Any] = given if isinstance(given, dict) else vars(given)
    found: dict[str, Any] = {}
    for name, value in named.items():
        if name == "opset_version":
            found |= {} if value is None else {"opset": value}
        elif name in ("input_names", "output_names"):
            _check_names(sim, name, value)
        elif name not in _WITHOUT_MEANING:
            fix = "opset_version, input_names and output_names are understood"
            raise ConfigError("FXQ905", f"{name!r} means nothing to this export", fix=fix)
    return found


def _check_names(sim: QuantizationSimModel, name: str, value: Any) -> None:
    kind = "placeholder" if name == "input_names" else "output"
    nodes = [n for n in sim.model.graph.nodes if n.op == kind]
    own = [str(n.target) for n in nodes]
    if value is None or (kind == "placeholder" and list(value) == own):
        return
    what = f"{name}={value!r}: inputs and outputs are called as in the model"
    shown = ", ".join(own) if kind == "placeholder" else ", ".join(label(n) for n in nodes)
    raise ConfigError("FXQ905", what, fix=f"leave it out; the model has {shown}")


class OnnxExporter:
    """`sim.onnx`: writes one ONNX file, with its encodings beside.

    Args:
        sim: the simulation.
    """

    def __init__(self, sim: QuantizationSimModel) -> None:
        self._sim = sim

    def export(
        self,
        args: Any,
        f: str | Path,
        *,
        encoding_version: str = "1.0.0",
        export_int32_bias: bool | None = None,
        force_activation_as: str | None = "unsigned",
        **kwargs: Any,
    ) -> ParityReport:
        """Write `f` and, beside it, the encodings under the same name.

        Args:
            args: inputs of the proof.
            f: path of the ONNX file; it has quantizers in it.
            encoding_version: 0.6.1, 1.0.0, 2.0.0 or 2.1.0.
            export_int32_bias: False is refused: biases of integer kernels are int32.
            force_activation_as: types of activations are the target's; "signed" is refused where
                that has unsigned ones.
            kwargs: of `torch.onnx.export`: `opset_version` is used.

        Raises:
            ConfigError: FXQ905, an argument asks for what cannot be had.
            ExportError: as for `fxquant.QuantizationSimModel.export`.
        """
        return export_file(
            self._sim, args, f, {".onnx", ".encodings"}, kwargs, bias=export_int32_bias,
            activation=force_activation_as, encoding_version=encoding_version,
        )  # fmt: skip


def export_file(
    sim: QuantizationSimModel,
    args: Any,
    f: str | Path,
    kept: set[str],
    kwargs: dict[str, Any],
    *,
    bias: bool | None,
    activation: str | None,
    **options: Any,
) -> ParityReport:
    """Export to one ONNX file.

    Args:
        sim: the simulation.
        args: example inputs.
        f: the ONNX file.
        kept: suffixes of the files beside it that stay.
        kwargs: arguments of `torch.onnx.export`.
        bias: whether biases are int32; False cannot be had.
        activation: "signed" or "unsigned" integers, which must be those of the target.
        options: of `fxquant.QuantizationSimModel.export`.

    Raises:
        ConfigError: FXQ905, an argument asks for what cannot be had.
        ExportError: as for `fxquant.QuantizationSimModel.export`.
    """
    file = as_path(f)
    if bias is False:
        what, fix = "export_int32_bias=False cannot be had", "leave it out"
        raise ConfigError("FXQ905", what, fix=f"{fix}: integer kernels add int32 biases")
    signed = sim.target.activation.signed
    if activation not in ("unsigned", "signed", None) or (activation == "signed") > signed:
        what = f"force_activation_as={activation!r}: {sim.target.name} says what activations are"
        raise ConfigError("FXQ905", what, fix="choose another target when the simulation is made")
    given = {**torch_options(sim, kwargs), **options}
    with made_folder(file.parent) as home, tempfile.TemporaryDirectory(dir=home) as work:
        report = ExportMethods.export(sim, work, file.stem, args, **given)
        for made in sorted(Path(work).iterdir(), key=lambda p: p.suffix == ".onnx"):
            if made.suffix in kept or made.suffix == ".data":
                os.replace(made, home / (file.name if made.suffix == ".onnx" else made.name))
    return report
