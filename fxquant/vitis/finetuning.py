"""`fast_finetune` and `load_ft_param`: fine-tuned parameters in a file beside the calibration.

The file holds every parameter of the quantized network: weights, biases and the ranges that steps
follow from. In "test" mode the network has its own weights until they are loaded.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from fxquant.errors import CalibrationError, CheckpointError, ConfigError, nearest
from fxquant.io.reading import reason, require_file
from fxquant.io.state_dicts import write_tensors, wrong_tensors
from fxquant.io.writing import new_file
from fxquant.ptq.techniques.fast_finetune import FinetuneParams, FinetuneReport, fast_finetune
from fxquant.vitis.info import graph_digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fxquant.sim import QuantizationSimModel

log = logging.getLogger("fxquant")
FILE = "param.safetensors"
_DIGEST = "fxquant.graph_md5"  # key of the graph's digest in the file's metadata
_AGAIN = "run quant_mode='calib' with fast_finetune and export_quant_config() again"


class Finetuning:
    """The part of a `TorchQuantizer` that fine-tunes.

    Attributes:
        finetuned: the report of `fast_finetune`; None before it was called.
    """

    mode: str
    folder: Path
    quant_model: fx.GraphModule
    _sim: QuantizationSimModel
    _info: dict[str, Any] | None
    finetuned: FinetuneReport | None = None
    _loaded = False

    def _end_calibration(self) -> None:
        raise NotImplementedError

    def fast_finetune(
        self,
        run_fn: Callable[..., Any],
        run_args: tuple[Any, ...] = (),
        *,
        params: FinetuneParams | None = None,
    ) -> FinetuneReport:
        """Calibrate on what `run_fn` shows to `quant_model`, then fine-tune on the same.

        Weights, steps and biases are refined layer by layer (see `fxquant.fast_finetune`), never to
        the worse on batches held out, and are written to `param.safetensors` in `output_dir`. The
        calibration has ended then: further calls of `quant_model` compute with what was found.

        Args:
            run_fn: called as `run_fn(*run_args)`; it calls `quant_model` on data.
            run_args: its arguments, `quant_model` among them.
            params: options; gradients, labels and losses that `run_fn` may use do not matter.

        Returns:
            What was done, and what it did to the network's outputs.

        Raises:
            ConfigError: FXQ209 in "test" mode, FXQ215 the arguments are no function and its
                arguments; FXQ208 and FXQ296 for options.
            CalibrationError: FXQ457, `run_fn` did not call `quant_model`; FXQ441 to FXQ447, as for
                `reconstruct`.
            CheckpointError: FXQ542 to FXQ545, the file cannot be written.
        """
        if self.mode != "calib":
            what = "fast_finetune belongs to quant_mode='calib'"
            raise ConfigError("FXQ209", what, fix="call load_ft_param() in 'test' mode")
        call: tuple[Any, Any] = run_fn, run_args
        if not callable(call[0]) or not isinstance(call[1], tuple | list):
            what = "fast_finetune takes a function and a tuple of its arguments"
            fix = "fast_finetune(evaluate, (quantizer.quant_model, loader))"
            raise ConfigError("FXQ215", what, fix=fix)
        given = params or FinetuneParams()
        seen = _shown(self.quant_model, run_fn, run_args, given.data.samples)
        self._end_calibration()
        found = fast_finetune(self._sim, seen, given)
        self._write()
        self.finetuned = found
        log.info("fast finetuning\n%s", found)
        return found

    def load_ft_param(self) -> None:
        """Load what `fast_finetune` wrote in "calib" mode; everything is checked before.

        Raises:
            ConfigError: FXQ209, in "calib" mode.
            CheckpointError: FXQ640 there is no file, FXQ641 it is damaged, FXQ642 it is of another
                network or calibration, FXQ643 a parameter does not fit.
        """
        if self.mode != "test":
            what = "load_ft_param belongs to quant_mode='test'"
            raise ConfigError("FXQ209", what, fix="call fast_finetune in 'calib' mode")
        tensors = _read(self.folder / FILE, graph_digest(self.quant_model))
        _check(self.quant_model, tensors)
        self.quant_model.load_state_dict(tensors, strict=False)
        self._loaded = True

    def _write(self) -> None:
        own = self.quant_model.named_parameters()
        tensors = {name: p.detach().cpu().clone().contiguous() for name, p in own}
        with new_file(self.folder / FILE, error=CheckpointError) as file:
            write_tensors(tensors, file, {_DIGEST: graph_digest(self.quant_model)})

    def _require_finetuned(self) -> None:
        """Refuse to hand out a network whose fine-tuned parameters were not loaded."""
        wanted = self._info is not None and bool(self._info.get("fast_finetuned"))
        if wanted and not self._loaded:
            what = "the calibration was fine-tuned, and its parameters are not loaded"
            raise ConfigError("FXQ288", what, fix="call load_ft_param() first")


def _shown(
    model: nn.Module, run_fn: Callable[..., Any], run_args: Any, most: int | None
) -> list[dict[str, Any]]:
    """Inputs that a function calls a model with, up to so many samples."""
    names = [
        str(n.target).lstrip("*")
        for n in model.graph.nodes  # type: ignore[union-attr]
        if n.op == "placeholder"
    ]
    found: list[dict[str, Any]] = []
    count = 0

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal count
        if most is not None and count >= most:
            return
        given = dict(zip(names, args, strict=False)) | kwargs
        # a loader may write the next batch into the same memory
        kept = {n: v.detach().clone() if isinstance(v, Tensor) else v for n, v in given.items()}
        count += next((len(v) for v in kept.values() if isinstance(v, Tensor) and v.dim()), 1)
        found.append(kept)

    handle = model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        run_fn(*run_args)
    finally:
        handle.remove()
    if not found:
        what = "run_fn did not call quant_model, so there is nothing to fine-tune on"
        raise CalibrationError("FXQ457", what, fix="pass quant_model in run_args, and call it")
    return found


def _read(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        require_file(path)
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get(_DIGEST)
        tensors = load_file(path)
    except OSError as error:
        what = f"there are no fine-tuned parameters at {path}"
        raise CheckpointError("FXQ640", what, fix=_AGAIN) from error
    except Exception as error:  # the parser's own, and those of tensors that do not fit its header
        what = f"{path} is damaged: {reason(error)}"
        raise CheckpointError("FXQ641", what, fix=_AGAIN) from error
    if written != digest:
        raise CheckpointError("FXQ642", f"{path} is of another network or target", fix=_AGAIN)
    return tensors


def _check(model: nn.Module, given: dict[str, Tensor]) -> None:
    own = dict(model.named_parameters())
    for name in own.keys() ^ given.keys():
        where = "the file lacks" if name in own else "the network lacks"
        what = f"{where} the parameter {name}"
        raise CheckpointError("FXQ643", what, fix=nearest(name, own) or _AGAIN)
    for name, parameter in own.items():
        if given[name].shape != parameter.shape:
            what = f"the parameter {name} is {tuple(given[name].shape)} in the file"
            raise CheckpointError("FXQ643", what, fix=f"{tuple(parameter.shape)} was expected")
    for wrong in wrong_tensors(model, given):
        raise CheckpointError("FXQ643", f"the parameter {wrong}", fix=_AGAIN)
