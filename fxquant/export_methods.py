"""What a simulation becomes: files that are proven, and the exact integer model.

Lowering and onnxruntime are imported when they are called: a simulation needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from fxquant import editing
from fxquant.encodings_methods import EncodingsMethods
from fxquant.errors import ConfigError, FxQuantError
from fxquant.flags import require_flags
from fxquant.nn.modes import evaluating
from fxquant.prepare import call_arguments
from fxquant.tracing.signature import mismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from fxquant.config import QuantConfig
    from fxquant.onnx.integer import IntegerSimulation
    from fxquant.onnx.parity.report import ParityReport
    from fxquant.prepare import Inputs
    from fxquant.quantization import QuantScheme
    from fxquant.sim import QuantizationSimModel
    from fxquant.targets import Deploy, Target


class ExportMethods(EncodingsMethods):
    """The part of `QuantizationSimModel` that writes files.

    Attributes:
        target: what the model is quantized for.
        config: what is quantized, and how.
        quant_scheme: how ranges were found.
    """

    target: Target
    config: QuantConfig
    quant_scheme: QuantScheme

    def export(
        self,
        path: str | Path,
        filename_prefix: str,
        dummy_input: Any = None,
        *,
        opset: int = 21,
        prove: bool = True,
        contrib: bool | None = None,
        deploy: Deploy | None = None,
        encoding_version: str = "1.0.0",
        companion: Callable[[Path], object] | None = None,
    ) -> ParityReport:
        """Write integer ONNX, its encodings and float weights, and prove them against onnxruntime.

        Args:
            path: folder; it is made when missing.
            filename_prefix: files are called `<prefix>.onnx`, `<prefix>.encodings`, ...
            dummy_input: inputs of the proof; default: those of the constructor.
            opset: ONNX opset, 13 to 23.
            prove: compare with onnxruntime before the files get their names.
            contrib: write for onnxruntime, with its own operators; False: standard ONNX; default:
                what the target says.
            deploy: the CPUs that the file is written for: "any", "vnni", "avx2" or "arm", see
                `fxquant.onnx.lowering.deployment`; default: what configuration or target say.
            encoding_version: version of the encodings file: 0.6.1, 1.0.0, 2.0.0 or 2.1.0.
            companion: called with the folder that holds the finished files before they get their
                names; what it writes there becomes one of them.

        Returns:
            The report of the proof; truthy when simulation and runtime agree.

        Raises:
            UncalibratedError: a quantizer has no range.
            ExportError: lowering, verification or writing failed; nothing is left behind.
            ParityError: the runtime computes something else; nothing is left behind.
        """
        from fxquant.export import export_model

        require_flags(prove=prove, **({} if contrib is None else {"contrib": contrib}))
        editing.refresh_biases(self.model)
        example = self._example if dummy_input is None else self._taken(dummy_input)
        return export_model(
            self.model, path, filename_prefix, example, opset=opset, prove=prove,
            contrib=self.target.contrib if contrib is None else contrib,
            deploy=self._deploy if deploy is None else deploy,
            scheme=self.quant_scheme.name, encoding_version=encoding_version, target=self.target,
            companion=companion,
        )  # fmt: skip

    def integer_model(
        self, dummy_input: Any = None, *, opset: int = 21, islands: str = "own",
        deploy: Deploy | None = None, cpu: str = "exact",
    ) -> IntegerSimulation:  # fmt: skip
        """The model as onnxruntime's default CPU run computes it, integer for integer.

        `sim.model` is for training and speed, this is the truth about the target, bit for bit. It
        takes what `sim.model` does, or arrays, and returns the same; later changes do not show.

        Args:
            dummy_input: inputs to lower the model with; default: those of the constructor.
            opset: ONNX opset, 13 to 23.
            islands: who computes what stays in floating point: "own", or "onnxruntime" where the
                last bits of float convolutions and matrix products matter.
            deploy: as in `export`.
            cpu: whose arithmetic: "exact"; "avx2", integer products that saturate as on x86 CPUs
                without VNNI; or "here", that of this CPU.

        Raises:
            UncalibratedError: a quantizer has no range.
            ExportError: the model has no form in ONNX.
        """
        from fxquant.onnx.integer import IntegerSimulation

        example = self._example if dummy_input is None else self._taken(dummy_input)
        return IntegerSimulation(
            self.model, example, opset=opset, contrib=self.target.contrib,
            deploy=deploy or self._deploy, islands=islands, cpu=cpu,
        )  # fmt: skip

    def report(
        self,
        path: str | Path,
        data: Any = None,
        *,
        samples: int | None = 32,
        evaluation: Mapping[str, float] | None = None,
        export: Any = None,
        profile: Any = None,
        mixed_precision: Any = None,
        analyzer: Any = None,
        audit: Any = None,
        recipe: Any = None,
        before: nn.Module | Mapping[str, Tensor] | None = None,
        title: str | None = None,
        max_memory: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Write one HTML file about this simulation; it opens in any browser and loads nothing.

        Without data it shows the folded graph, encodings, precisions and reasons; with data also
        the values of every tensor over its grid, and the errors that every node makes. What other
        functions found is shown where it is given.

        Args:
            path: the file; its folder is made when missing.
            data: batches, as for `compute_encodings`; each is read once.
            samples: samples of the data that are enough; None: all.
            evaluation: results by name, the float model's first, such as
                `{"float": 76.1, "simulation": 75.9, "onnxruntime": 75.9}`.
            export: what `export` returned, its file `<prefix>.report.json`, or their folder.
            profile: what `fxquant.profile` returned for this simulation, or its JSON.
            mixed_precision: what `choose_mixed_precision` returned, or its JSON.
            analyzer: what `QuantAnalyzer.analyze` returned.
            audit: what `audit_calibration` returned, or its JSON.
            recipe: what a run decided: a `Recipe`, its file, or a mapping.
            before: the float model before techniques, or its state dict, to compare weights with.
            title: of the page; default: the file's name.
            max_memory: bytes of values in memory; the rest lies in files; None: no limit.
            progress: called after each node with (nodes done, nodes in all), once for each walk.

        Returns:
            The file.

        Raises:
            ConfigError: FXQ542 to FXQ545 or FXQ750 the path cannot be used, FXQ791 to FXQ795 what
                was handed in cannot be read, FXQ296 `samples` is no number.
            CalibrationError: FXQ441 to FXQ445, the data do not fit the model or hold NaN.

        Example:
            >>> import tempfile, torch
            >>> from torch import nn
            >>> from fxquant import QuantizationSimModel
            >>> x = torch.randn(8, 3)
            >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval(), x)
            >>> sim.compute_encodings([x])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     sim.report(f"{folder}/report.html", [x]).name
            'report.html'
        """
        from fxquant.inspection.report.write import write_report

        sim = cast("QuantizationSimModel", self)  # the only class that this is a part of
        return write_report(
            sim, path, data, samples=samples, evaluation=evaluation, export=export,
            profile=profile, mixed_precision=mixed_precision, analyzer=analyzer, audit=audit,
            recipe=recipe, before=before, title=title, max_memory=max_memory, progress=progress,
        )  # fmt: skip

    def _taken(self, dummy_input: Any) -> Inputs:
        """The arguments of a dummy input that the model takes.

        Raises:
            ConfigError: FXQ247, it does not.
        """
        args, kwargs = call_arguments(dummy_input)
        try:
            with evaluating(self.model), torch.no_grad():
                self.model(*args, **kwargs)
        except (FxQuantError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            found = mismatch(self.model, args, kwargs, error)
            what = f"the model does not take the dummy input: {found.what}"
            raise ConfigError("FXQ247", what, at=found.at, fix=found.fix) from error
        return args, kwargs

    @property
    def _deploy(self) -> Deploy:
        return self.config.deploy or self.target.deploy
