"""`QuantAnalyzer`: which layers a model's quantization costs most, under AIMET's documented names.

What it measures is measured elsewhere: evaluations with some of the quantizers (`sensitivity`), the
errors of nodes in one walk (`node_errors`), ranges and histograms (`quantizer_statistics`). Every
result is a JSON file, with a page of HTML beside it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import nn

from fxquant.analysis.analyzer import charts
from fxquant.analysis.analyzer.analyzer_result import AnalyzerResult, ModelSensitivity
from fxquant.analysis.analyzer.callbacks import of_model
from fxquant.analysis.analyzer.captured_inputs import capturing
from fxquant.analysis.analyzer.quantizer_statistics import Range, Spread, outermost, ranges, spreads
from fxquant.analysis.analyzer.sensitivity import (
    BY_CALLBACK,
    LABEL_FREE,
    Sensitivity,
    layers_with_quantizers,
    noise_of,
)
from fxquant.errors import ConfigError
from fxquant.graph.pytree import tensors
from fxquant.graph.selectors import several
from fxquant.inspection.node_errors import NodeErrors, node_errors
from fxquant.io.writing import as_path, write_text
from fxquant.mixed_precision.progress_file import ProgressFile
from fxquant.ptq.layer_walk import require_number
from fxquant.quantization import QuantScheme
from fxquant.quantization.digest import tensors_digest
from fxquant.sim import QuantizationSimModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from fxquant.graph.selectors import Selector
    from fxquant.mixed_precision.scores import Noise
    from fxquant.targets import Target

log = logging.getLogger("fxquant")

FILE = "quant_analyzer.progress.json"
_RESULTS = "./tmp/"


class QuantAnalyzer:
    """Analyzes how sensitive a model and its layers are to quantization.

    Args:
        model: the float model; it is not changed.
        dummy_input: example inputs, as for `QuantizationSimModel`.
        forward_pass_callback: runs unlabeled data through the model it is given, to calibrate: a
            function of the model, of (model, args), or a `CallbackFunc`.
        eval_callback: the same, returns a number, larger is better. None: the signal to noise
            ratio of the outputs against the float model in dB, on the data that
            `forward_pass_callback` runs or on those of `enable_per_layer_mse_loss`.
        modules_to_ignore: modules of `model`, or selectors, that stay in floating point.
        target: what the simulation is built for.
        samples: samples that ratios and errors of nodes are measured on.
        threads: of torch; None: as they are.
        progress: called after each evaluation with (done, in all).

    Raises:
        ConfigError: FXQ237, a callback cannot be called; FXQ296, `samples` is no number.

    Example:
        >>> import tempfile, torch
        >>> x, net = torch.randn(64, 8), nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> analyzer = QuantAnalyzer(net, x, lambda model: model(x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = analyzer.analyze(default_param_bw=4, results_dir=folder)
        >>> found.sensitivity.weights < found.sensitivity.activations
        True
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        forward_pass_callback: Callable[..., Any],
        eval_callback: Callable[..., Any] | None = None,
        modules_to_ignore: Iterable[nn.Module | Selector] | None = None,
        *,
        target: Target | str = "onnxruntime_x86",
        samples: int = 64,
        threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        require_number("samples", samples, 1)
        self.model, self.dummy_input, self.target = model, dummy_input, target
        self._run = of_model(forward_pass_callback, "forward_pass_callback")
        given = eval_callback
        self._evaluate = None if given is None else of_model(given, "eval_callback")
        self._evaluate_name = str(getattr(given, "__qualname__", type(given).__name__))
        self._ignored = list(several(modules_to_ignore)) if modules_to_ignore else []
        self._samples, self._threads, self._progress = samples, threads, progress
        self._dataset: tuple[Iterable[Any], int] | None = None
        self._data: list[Any] = []

    def enable_per_layer_mse_loss(
        self, unlabeled_dataset_iterable: Iterable[Any], num_batches: int
    ) -> None:
        """Measure the mean squared error of every layer's output, too.

        Args:
            unlabeled_dataset_iterable: batches; inputs beyond those of the model are left out.
            num_batches: how many of them are looked at.

        Raises:
            ConfigError: FXQ296, `num_batches` is no number.
        """
        require_number("num_batches", num_batches, 1)
        self._dataset = unlabeled_dataset_iterable, num_batches
        self._data = []

    def analyze(
        self,
        quant_scheme: QuantScheme | str = QuantScheme.post_training_tf_enhanced,
        default_param_bw: int = 8,
        default_output_bw: int = 8,
        config_file: str | Path | None = None,
        results_dir: str | Path = _RESULTS,
    ) -> AnalyzerResult:
        """Build a simulation, and measure all there is.

        An analysis that was killed goes on where it was when it is called again.

        Args:
            quant_scheme: how ranges are found.
            default_param_bw: bits of weights.
            default_output_bw: bits of activations.
            config_file: a configuration, AIMET's or one's own.
            results_dir: folder of the files.

        Returns:
            What the files hold.

        Raises:
            CalibrationError: the callback runs no data, or they hold NaN.
            ConfigError: FXQ258 `eval_callback` failed, FXQ249 it returned no finite number.
            SelectorError: FXQ213 or FXQ241, `modules_to_ignore` names what is not there.
        """
        sim = QuantizationSimModel(
            self.model, self.dummy_input, quant_scheme, default_output_bw, default_param_bw,
            config_file=config_file, target=self.target,
        )  # fmt: skip
        if self._ignored:
            sim.exclude_layers_from_quantization([self._path(m) for m in self._ignored])
        with capturing(sim.model, self._samples) as seen:
            sim.compute_encodings(self._run)
        self._data = seen if self._dataset is None else []
        session = self._session(sim, results_dir, 4 + 2 * len(layers_with_quantizers(sim.model)))
        model = self._model_sensitivity(session, results_dir)
        enabled = self._per_layer(session, results_dir, "enabled")
        disabled = self._per_layer(session, results_dir, "disabled")
        self.export_per_layer_encoding_min_max_range(sim, results_dir)
        self.export_per_layer_stats_histogram(sim, results_dir)
        nodes = self._node_errors(sim, results_dir)
        if self._dataset is not None:
            self._write_mse(sim, nodes, results_dir)
        session.progress.remove()
        return AnalyzerResult(model, enabled, disabled, nodes, str(as_path(results_dir)))

    # --- parts -----------------------------------------------------------------------------------

    def check_model_sensitivity_to_quantization(
        self, sim: QuantizationSimModel
    ) -> tuple[float | None, float, float]:
        """Evaluate the float model, with weights alone quantized, and with activations alone.

        Returns:
            Three evaluations; the first is None without `eval_callback`, as the others are ratios
            to it.
        """
        found = self._model_sensitivity(self._session(sim, None, 4), None)
        return found.float_model, found.weights, found.activations

    def perform_per_layer_analysis_by_enabling_quantizers(
        self, sim: QuantizationSimModel, results_dir: str | Path = _RESULTS
    ) -> dict[str, float]:
        """Evaluate with the quantizers of one layer at a time; by path of the layer."""
        return self._alone(sim, results_dir, "enabled")

    def perform_per_layer_analysis_by_disabling_quantizers(
        self, sim: QuantizationSimModel, results_dir: str | Path = _RESULTS
    ) -> dict[str, float]:
        """Evaluate with all quantizers but those of one layer; by path of the layer."""
        return self._alone(sim, results_dir, "disabled")

    def export_per_layer_encoding_min_max_range(
        self, sim: QuantizationSimModel, results_dir: str | Path = _RESULTS
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write the ranges of all quantizers, those of activations and of weights."""
        home = as_path(results_dir) / "min_max_ranges"
        activations, weights = ranges(sim.model)
        whole = {name: outermost(found) for name, found in weights.items()}
        pictures: dict[str, tuple[Mapping[str, Any], Mapping[str, Range]]] = {
            "activations": (activations, activations),
            "weights": (weights, whole),
        }
        for name, (found, shown) in pictures.items():
            _write(home, name, found, charts.intervals(f"Ranges of {name}", shown))
        return activations, weights

    def export_per_layer_stats_histogram(
        self, sim: QuantizationSimModel, results_dir: str | Path = _RESULTS
    ) -> tuple[dict[str, Spread], dict[str, Spread]]:
        """Write histograms of float values, of activations and of weights."""
        found = spreads(sim.model, self._run)
        for folder, kind in zip(("activations_pdf", "weights_pdf"), found, strict=True):
            home = as_path(results_dir) / folder
            plain = {name: asdict(spread) for name, spread in kind.items()}
            write_text(home / "histograms.json", _json(plain), error=ConfigError)
            for number, (name, s) in enumerate(kind.items()):
                # paths of modules may be too long or too odd for names of files
                file = f"{number:04}_{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:80]}.html"
                text = charts.histogram(name, s.start, s.width, s.counts, s.clip)
                write_text(home / file, text, error=ConfigError)
        return found

    def export_per_layer_mse_loss(
        self, sim: QuantizationSimModel, results_dir: str | Path = _RESULTS
    ) -> dict[str, float]:
        """Write the mean squared error of every layer's output in the simulation."""
        return self._write_mse(sim, self._node_errors(sim, results_dir), results_dir)

    # --- measuring -------------------------------------------------------------------------------

    def _path(self, module: Any) -> Any:
        """The path of a module of the float model; selectors are paths already."""
        if not isinstance(module, nn.Module):
            return module
        return next((p for p, m in self.model.named_modules() if m is module), module)

    def _session(
        self, sim: QuantizationSimModel, results_dir: str | Path | None, total: int
    ) -> Sensitivity:
        done = 0

        def tell() -> None:
            nonlocal done
            done += 1
            if self._progress is not None:
                self._progress(done, max(total, done))

        noise = None
        if self._evaluate is None:
            noise = noise_of(sim.model, self._batches(sim), self._samples, self._threads)
        progress = self._file(sim, noise, results_dir)
        return Sensitivity(sim.model, self._evaluate, noise, progress, tell)

    def _file(
        self, sim: QuantizationSimModel, noise: Noise | None, results_dir: str | Path | None
    ) -> ProgressFile:
        """What an earlier call of the same analysis found; of another one nothing."""
        seen = [] if noise is None else [t for b in noise.batches for t in tensors(b)]
        identity = {
            "model": tensors_digest(sim.model.state_dict()),
            "quantizers": [f"{name} {q}" for name, q in sim.named_quantizers()],
            "data": tensors_digest({str(i): t for i, t in enumerate(seen)}),
            "evaluate": LABEL_FREE if self._evaluate is None else self._evaluate_name,
        }
        try:
            return ProgressFile(results_dir, identity, name=FILE)
        except ConfigError as error:
            log.info("the analysis begins anew: %s", error.what)
            return ProgressFile(results_dir, identity, clean_start=True, name=FILE)

    def _batches(self, sim: QuantizationSimModel) -> list[Any]:
        """Batches for what needs no labels."""
        if not self._data and self._dataset is not None:
            data, count = self._dataset
            self._data = list(islice(iter(data), min(count, sys.maxsize)))
        if not self._data:
            with capturing(sim.model, self._samples) as seen:
                self._run(sim.model)
            self._data = seen
        return self._data

    def _model_sensitivity(
        self, session: Sensitivity, results_dir: str | Path | None
    ) -> ModelSensitivity:
        found = ModelSensitivity(
            LABEL_FREE if self._evaluate is None else BY_CALLBACK, session.float_model(),
            session.all_quantized(), session.weights(), session.activations(),
        )  # fmt: skip
        if results_dir is not None:
            path = as_path(results_dir) / "model_sensitivity.json"
            write_text(path, _json(asdict(found)), error=ConfigError)
        return found

    def _alone(
        self, sim: QuantizationSimModel, results_dir: str | Path, which: str
    ) -> dict[str, float]:
        session = self._session(sim, results_dir, len(layers_with_quantizers(sim.model)))
        found = self._per_layer(session, results_dir, which)
        session.progress.remove()
        return found

    def _per_layer(
        self, session: Sensitivity, results_dir: str | Path, which: str
    ) -> dict[str, float]:
        measure = session.only if which == "enabled" else session.all_but
        found = {layer: measure(layer) for layer in layers_with_quantizers(session.gm)}
        what = LABEL_FREE if self._evaluate is None else self._evaluate_name
        picture = charts.bars(f"Quantizers of one layer {which}: {what}", found)
        _write(as_path(results_dir), f"per_layer_quant_{which}", found, picture)
        return found

    def _node_errors(self, sim: QuantizationSimModel, results_dir: str | Path) -> NodeErrors:
        batches = self._batches(sim)
        samples = None if self._dataset is not None else self._samples
        found = node_errors(sim, batches, samples=samples, threads=self._threads)
        write_text(as_path(results_dir) / "node_errors.json", found.to_json(), error=ConfigError)
        return found

    def _write_mse(
        self, sim: QuantizationSimModel, nodes: NodeErrors, results_dir: str | Path
    ) -> dict[str, float]:
        layers = set(layers_with_quantizers(sim.model))
        rows = [r for r in nodes.rows if r.module in layers and r.mse is not None]
        found = {r.module: r.mse for r in rows if r.mse is not None}
        picture = charts.bars("Mean squared error of the outputs of layers", found)
        _write(as_path(results_dir), "per_layer_mse_loss", found, picture)
        return found


def _write(home: Path, name: str, found: Mapping[str, Any], picture: str) -> None:
    write_text(home / f"{name}.json", _json(found), error=ConfigError)
    write_text(home / f"{name}.html", picture, error=ConfigError)


def _json(found: Mapping[str, Any]) -> str:
    return json.dumps(found, indent=1, allow_nan=False)
