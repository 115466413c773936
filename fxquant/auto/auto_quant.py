"""`AutoQuant` under its documented name: a face of the search in this folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxquant.auto.one_call import tell_result
from fxquant.auto.recorded_request import recording
from fxquant.auto.request import Found, Request, find
from fxquant.auto.techniques import DEFAULT_SCHEME, TECHNIQUES, Stage
from fxquant.calibrate import accepts
from fxquant.errors import ConfigError
from fxquant.flags import require_flags
from fxquant.io.writing import as_path, checked_prefix, made_folder, stage, write_text
from fxquant.prepare import prepare_model
from fxquant.ptq.solving.gradient_rounding import AdaroundOptions
from fxquant.quantization import QuantScheme
from fxquant.records.recording import Sources
from fxquant.tracking.events import OnEvent

if TYPE_CHECKING:
    from fxquant.auto.search_report import AutoReport
    from fxquant.graph.selectors import Selector
    from fxquant.sim import QuantizationSimModel

_NAME = "auto_quant"
_SCHEMES = tuple(
    row.name
    for row in TECHNIQUES
    if row.stage is Stage.RANGES and (row.auto or row.name == DEFAULT_SCHEME)
)


class AutoQuant:
    """Quantizes a model as well as is needed: a face of the search that `fxquant.quantize` makes.

    Args:
        model: the float model; it is not changed.
        dummy_input: inputs to record it with.
        data_loader: an iterable of batches; labels in them are left out.
        eval_callback: `eval_callback(model)` or `eval_callback(model, None)` returns a number, the
            higher the better.
        param_bw: bits of weights.
        output_bw: bits of activations.
        quant_scheme: how ranges are found; the first of the candidates.
        rounding_mode: "nearest"; ties go to even.
        config_file: a configuration, AIMET's or one's own.
        results_dir: folder of the exported files.
        cache_id: results are kept under this name in `results_dir`, and are gone on from by a
            later call, also after a kill.
        strict_validation: an error of a technique is raised; False: it is told in the report.
        model_prepare_required: False: the model is prepared already, or needs no
            `set_model_preparer_params`; it is recorded in either case.
        on_event: as for `fxquant.quantize`.

    Attributes:
        report: what the last call of `run_inference` or `optimize` tried.

    Raises:
        ConfigError: FXQ248, an argument cannot be used.

    Example:
        >>> import torch
        >>> x, net = torch.randn(64, 8), nn.Linear(8, 4)
        >>> measure = lambda model: -float((model(x) - net(x)).abs().max())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     auto = AutoQuant(net, x, [x], measure, results_dir=folder)
        ...     model, score, path = auto.optimize(allowed_accuracy_drop=0.5)
        >>> score > -0.5, Path(path).name
        (True, 'auto_quant.encodings')
    """

    _techniques: tuple[str, ...] = tuple(
        row.name
        for row in TECHNIQUES
        if row.auto and not row.last and row.stage is not Stage.RANGES
    )

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        data_loader: Iterable[Any],
        eval_callback: Callable[..., Any],
        param_bw: int = 8,
        output_bw: int = 8,
        quant_scheme: QuantScheme | str = QuantScheme.post_training_tf_enhanced,
        rounding_mode: str = "nearest",
        config_file: str | Path | None = None,
        results_dir: str | Path = "auto_quant_results",
        cache_id: str | None = None,
        strict_validation: bool = True,
        model_prepare_required: bool = True,
        *,
        on_event: OnEvent | None = None,
    ) -> None:
        require_flags(
            strict_validation=strict_validation, model_prepare_required=model_prepare_required
        )
        if rounding_mode != "nearest":
            what = f"rounding_mode is {rounding_mode!r}"
            raise ConfigError("FXQ248", what, fix="'nearest' is what runtimes compute")
        if not callable(eval_callback):
            what = f"eval_callback is a {type(eval_callback).__name__}"
            raise ConfigError("FXQ248", what, fix="pass a function of the model")
        self.results_dir = as_path(results_dir, "results_dir")
        self.cache_id = None if cache_id is None else checked_prefix(cache_id)
        first = QuantScheme(quant_scheme).value
        self._schemes = (first, *(s for s in _SCHEMES if s != first))
        self._options: dict[str, Any] = {}
        self._excluded: tuple[Selector, ...] = ()
        self.report: AutoReport | None = None
        self._request = Request(
            model, data_loader, _Measure(eval_callback), dummy_input=dummy_input,
            param_bw=param_bw, output_bw=output_bw, config=config_file, strict=strict_validation,
            techniques="none", on_event=on_event,
        )  # fmt: skip

    # --- settings ----------------------------------------------------------------------------

    def set_adaround_params(self, adaround_params: Any) -> None:
        """Try AdaRound beside the other techniques, with these parameters.

        Args:
            adaround_params: an `AdaroundParameters`; the data are those of the data loader.
        """
        given = adaround_params
        names = ("default_num_iterations", "default_reg_param", "default_warm_start")
        if not all(hasattr(given, name) for name in (*names, "default_beta_range")):
            what = f"adaround_params is a {type(given).__name__}"
            raise ConfigError("FXQ248", what, fix="pass an AdaroundParameters")
        low, high = given.default_beta_range
        self._options["adaround"] = AdaroundOptions(
            given.default_num_iterations or AdaroundOptions.iterations,
            regularization=given.default_reg_param, beta=(float(low), float(high)),
            warm_start=given.default_warm_start,
        )  # fmt: skip

    def set_export_params(
        self, onnx_export_args: Any = -1, propagate_encodings: bool | None = None
    ) -> None:
        """Refused where they are given: files are written from the graph, and are complete.

        Raises:
            ConfigError: FXQ248.
        """
        if onnx_export_args not in (-1, None) or propagate_encodings:
            what = "export arguments of torch.onnx mean nothing here: files are not made by it"
            raise ConfigError("FXQ248", what, fix="export the result with sim.export(...)")

    def set_model_preparer_params(
        self,
        modules_to_exclude: Sequence[nn.Module] | None = None,
        module_classes_to_exclude: Sequence[type[nn.Module]] | None = None,
        concrete_args: Any = None,
    ) -> None:
        """Modules that are kept whole when the model is recorded; see `prepare_model`.

        Raises:
            ConfigError: FXQ248, `concrete_args` are given.
        """
        if concrete_args:
            what = "concrete_args are arguments of symbolic tracing; a run is recorded here"
            raise ConfigError("FXQ248", what, fix="pass them in dummy_input")
        self._excluded = (*(modules_to_exclude or ()), *(module_classes_to_exclude or ()))

    def get_quant_scheme_candidates(self) -> tuple[str, ...]:
        """Names of the schemes that are tried, the first as the base."""
        return self._schemes

    def set_quant_scheme_candidates(self, candidates: Iterable[QuantScheme | str]) -> None:
        """Set the schemes that are tried; weights and activations have the same.

        Raises:
            ConfigError: FXQ248, there are none, or one is not tried by the search.
        """
        names = tuple(dict.fromkeys(QuantScheme(c).value for c in candidates))
        known = {DEFAULT_SCHEME, *(r.name for r in TECHNIQUES if r.stage is Stage.RANGES)}
        wrong = [n for n in names[1:] if n not in known]
        if not names or wrong:
            what = f"{wrong[0]!r} is no candidate" if wrong else "there are no candidates"
            raise ConfigError("FXQ248", what, fix=f"candidates are {', '.join(sorted(known))}")
        self._schemes = names

    # --- work --------------------------------------------------------------------------------

    def run_inference(self) -> tuple[QuantizationSimModel, float]:
        """Simulate the model without any technique.

        Returns:
            The calibrated simulation and its score.
        """
        with ExitStack() as stack:
            found = self._find(stack, replace(self._asked(), techniques="none"))
        return found.sim, found.report.score

    def optimize(self, allowed_accuracy_drop: float = 0.0) -> tuple[fx.GraphModule, float, str]:
        """Search until the score is at most so much below the float model's, and export.

        Args:
            allowed_accuracy_drop: in the unit of `eval_callback`.

        Returns:
            The float model with what the techniques did to its weights (a simulation of it with the
            encodings is the one that was scored), its score, and the path of the encodings.
            Beside these lie the proven ONNX file, the report and the recipe.
        """
        with ExitStack() as stack:
            stack.enter_context(made_folder(self.results_dir))
            asked = replace(self._asked(), accuracy_drop=float(allowed_accuracy_drop))
            found = self._find(stack, asked)
            record = recording(asked, found, _NAME, prove=True, sources=Sources())
            companion = record.companion(self.results_dir)
            found.sim.export(self.results_dir, _NAME, companion=companion)
            tell_result(asked, found)
            write_text(self.results_dir / f"{_NAME}.txt", f"{found.report}\n")
        path = self.results_dir / f"{_NAME}.encodings"
        return found.sim.get_original_model(), found.report.score, str(path)

    def _asked(self) -> Request:
        """The request with all settings."""
        given = (*self._techniques, *self._schemes[1:], *self._options)
        request = replace(
            self._request, techniques=given, options=self._options, scheme=self._schemes[0]
        )
        if self._excluded:
            whole = prepare_model(
                request.model, request.dummy_input, modules_to_exclude=self._excluded
            )
            return replace(request, model=whole)
        return request

    def _find(self, stack: ExitStack, request: Request) -> Found:
        if self.cache_id is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            home = stack.enter_context(made_folder(self.results_dir))
            with stage(home, _NAME):
                folder = home / ".auto_quant_cache" / self.cache_id
        found = find(request, folder, shared=True)
        self.report = found.report
        return found


class AutoQuantWithAutoMixedPrecision(AutoQuant):
    """`AutoQuant` that gives layers more bits where all other techniques miss the target."""

    def set_mixed_precision_params(
        self,
        candidates: Sequence[Any],
        num_samples_for_phase_1: int | None = 128,
        forward_fn: Callable[..., Any] | None = None,
        num_samples_for_phase_2: int | None = None,
    ) -> None:
        """Let `choose_mixed_precision` choose among candidates.

        Args:
            candidates: see `choose_mixed_precision`; AIMET's pairs of pairs are understood.
            num_samples_for_phase_1: samples that the noise of single layers is measured on.
            forward_fn: not needed: batches are bound to the inputs of the recorded model.
            num_samples_for_phase_2: refused: choices are scored by `eval_callback` as a whole.

        Raises:
            ConfigError: FXQ248, `num_samples_for_phase_2` is given.
        """
        if num_samples_for_phase_2 is not None:
            what = "num_samples_for_phase_2 is given"
            fix = "leave it out; eval_callback decides how many samples it looks at"
            raise ConfigError("FXQ248", what, fix=fix)
        given: dict[str, Any] = {"candidates": list(candidates)}
        if num_samples_for_phase_1 is not None:
            given["samples"] = num_samples_for_phase_1
        self._options["mixed_precision"] = given


class _Measure:
    """A callback that is called with the model, and with None where it insists on two arguments."""

    def __init__(self, callback: Callable[..., Any]) -> None:
        self._callback = callback
        self._rest: tuple[Any, ...] = () if accepts(callback, 1) else (None,)
        self.__code__ = getattr(callback, "__code__", None)
        self.__qualname__ = getattr(callback, "__qualname__", type(callback).__name__)

    def __call__(self, model: Any) -> Any:
        return self._callback(model, *self._rest)
