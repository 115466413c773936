"""`QatProcessor`: quantization-aware training in the way of the Vitis AI quantizer.

    processor = QatProcessor(net, (x,), bitwidth=8)
    model = processor.trainable_model()
    ...                                    # an ordinary training loop
    deployed = processor.to_deployable(model, "qat_result")
    processor.export_onnx_model("qat_result")

The network needs no editing: operators need not be modules, modules may be called twice, and stubs
are not required.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxquant.checkpoint import load_checkpoint, save_checkpoint
from fxquant.errors import ConfigError
from fxquant.io.writing import as_path
from fxquant.nn.calibration import compute_encodings
from fxquant.passes import FoldLiveNorms
from fxquant.prepare import prepare_model
from fxquant.qat import enable_quantizers, freeze_batch_norms, freeze_ranges
from fxquant.quantization import QuantizerBase, QuantScheme
from fxquant.sim import QuantizationSimModel
from fxquant.vitis.info import NAME, load_info, read_info, write_info
from fxquant.vitis.inputs import example_inputs, moved_to
from fxquant.vitis.setup import configuration, target_of
from fxquant.vitis.strategy import load_strategy
from fxquant.vitis.xmodel import RefusesXmodel

if TYPE_CHECKING:
    from torch import fx

    from fxquant.onnx.parity.report import ParityReport
    from fxquant.targets import Target

_SCHEME = QuantScheme.training_range_learning_with_tf_enhanced_init
_WEIGHTS = "deployable"


class TrainableModel(nn.Module):
    """The network with quantizers whose ranges learn; what `trainable_model` returns.

    Attributes:
        model: the simulated graph; its modules are found under their own paths here as well.
    """

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__()
        self.model = model
        self._warm_up: ExitStack | None = None
        self._frozen: tuple[nn.Module, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network computes, on the grids."""
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def train(self, mode: bool = True) -> TrainableModel:
        """Train or evaluate; batch norms whose statistics are frozen go on evaluating."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def enable_quant(self) -> None:
        """Switch the quantizers on."""
        enable_quantizers(self.model)

    def disable_quant(self) -> None:
        """Switch the quantizers off: the network computes in floating point."""
        enable_quantizers(self.model, enabled=False)

    def enable_warmup(self) -> None:
        """Compute activations in floating point, and measure their ranges meanwhile."""
        if self._warm_up is None:
            self._warm_up = ExitStack()
            self._warm_up.enter_context(compute_encodings(self.model))

    def disable_warmup(self) -> None:
        """Set the ranges that the warm-up has measured, and quantize from now on."""
        stack, self._warm_up = self._warm_up, None
        if stack is not None:
            stack.close()

    def freeze_quant(self) -> None:
        """Ranges do not learn any longer."""
        freeze_ranges(self.model)

    def freeze_bn_stats(self) -> None:
        """Normalize by the running statistics, which stay as they are."""
        freeze_batch_norms(self.model)
        kinds = nn.modules.batchnorm._BatchNorm
        self._frozen = tuple(m for m in self.model.modules() if isinstance(m, kinds))
        self.train(self.training)

    def fuse_conv_bn(self) -> None:
        """Fold batch norms into their layers for good."""
        FoldLiveNorms()(self.model)

    def quantizer_parameters(self) -> list[nn.Parameter]:
        """Ranges that learn."""
        inner = self._inner()
        return [p for p in self.model.parameters() if id(p) in inner and p.requires_grad]

    def non_quantizer_parameters(self) -> list[nn.Parameter]:
        """Weights, biases and batch norms that learn."""
        inner = self._inner()
        return [p for p in self.model.parameters() if id(p) not in inner and p.requires_grad]

    def _inner(self) -> set[int]:
        quantizers = (m for m in self.model.modules() if isinstance(m, QuantizerBase))
        return {id(p) for q in quantizers for p in q.parameters(recurse=False)}


class QatProcessor(RefusesXmodel):
    """Makes a network trainable on the grids of a target, and deployable after training.

    Args:
        model: the float network; it is not changed.
        inputs: example inputs, a tensor or a tuple; ranges are first measured on them.
        bitwidth: bits of weights and activations; default: the strategy's or the target's.
        mix_bit: refused if True: bits by layer are given in `quant_config_file`.
        device: where the network trains; default: where it is.
        quant_config_file: strategy, a JSON file or its content.
        target: name of a shipped target, or a `Target`; default: the strategy's device, else
            onnxruntime.

    Raises:
        ConfigError: FXQ27x the strategy is wrong, FXQ28x an argument is.

    Example:
        >>> import tempfile
        >>> net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(8, 4)
        >>> processor = QatProcessor(net, (x,))
        >>> model = processor.trainable_model()
        >>> model(x).sum().backward()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     deployed = processor.to_deployable(model, folder)
        >>> model = model.eval()
        >>> bool(torch.equal(deployed(x), model(x)))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        bitwidth: int | None = None,
        mix_bit: bool = False,
        device: torch.device | str | None = None,
        *,
        quant_config_file: Any = None,
        target: str | Target | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            what = f"model is a {type(model).__name__}, not a torch.nn.Module"
            raise ConfigError("FXQ803", what, fix="pass the float network")
        if mix_bit:
            fix = "give the bits of layers in quant_config_file"
            raise ConfigError("FXQ803", "mix_bit has no layers to mix", fix=fix)
        strategy = None if quant_config_file is None else load_strategy(quant_config_file)
        self._target = target_of(target, strategy)
        self._name = type(model).__name__
        self._training = model.training
        given = example_inputs(inputs, None)
        if device is not None:
            model, given = moved_to(model, given, torch.device(device))
        self._inputs = given
        self._prepared = prepare_model(copy.deepcopy(model).eval(), self._inputs)
        self._config = configuration(self._prepared, bitwidth, strategy, self._target)
        self._deployed: QuantizationSimModel | None = None

    def trainable_model(
        self, calib_dir: str | Path = "", allow_reused_module: bool = True
    ) -> TrainableModel:
        """The network with quantizers, in training mode.

        Args:
            calib_dir: folder of a `quant_info.json` to begin with; else ranges are measured on the
                example inputs.
            allow_reused_module: modules may always be called twice: each call is a module.
        """
        sim = self._simulation("live")
        if calib_dir:
            load_info(sim.model, read_info(as_path(calib_dir)))
        else:
            sim.compute_encodings([self._inputs])
        return TrainableModel(sim.model).train(self._training)

    def to_deployable(self, trained_model: nn.Module, output_dir: str | Path) -> fx.GraphModule:
        """The trained network as a target computes it; equal in evaluation, bit for bit.

        Args:
            trained_model: what `trainable_model` returned, trained.
            output_dir: where `quant_info.json` and the trained weights are written.
        """
        if not isinstance(trained_model, TrainableModel):
            what = f"a {type(trained_model).__name__} is not what trainable_model() returned"
            raise ConfigError("FXQ804", what, fix="pass that model, without a wrapper around it")
        model = copy.deepcopy(trained_model.model).eval()
        FoldLiveNorms()(model)
        sim = self._simulation("folded")
        sim.model.load_state_dict(model.state_dict())
        folder = as_path(output_dir)
        save_checkpoint(sim, folder / _WEIGHTS)
        write_info(sim.model, folder / NAME, {"target": self._target.name})
        self._deployed = sim
        return sim.model

    def convert_to_deployable(
        self, trained_model: nn.Module, output_dir: str | Path
    ) -> fx.GraphModule:
        """The same as `to_deployable`, by its older name."""
        return self.to_deployable(trained_model, output_dir)

    def deployable_model(
        self, src_dir: str | Path, used_for_xmodel: bool = False
    ) -> fx.GraphModule:
        """The network that `to_deployable` has written, perhaps in another process.

        Args:
            src_dir: its `output_dir`.
            used_for_xmodel: refused if True: that format belongs to a compiler that is not at hand.
        """
        if used_for_xmodel:
            what = "xmodel files are written by the vendor's compiler only"
            raise ConfigError("FXQ803", what, fix="use export_onnx_model")
        sim = self._simulation("folded")
        load_checkpoint(sim, as_path(src_dir) / _WEIGHTS)
        self._deployed = sim
        return sim.model

    def export_onnx_model(
        self, output_dir: str | Path, *, opset_version: int = 21, check_model: bool = True
    ) -> ParityReport:
        """Write `<Model>_int.onnx` of the deployable network, and prove it against onnxruntime.

        Args:
            output_dir: folder.
            opset_version: ONNX opset.
            check_model: compare with onnxruntime before the file gets its name.
        """
        if self._deployed is None:
            fix = "call to_deployable(trained_model, output_dir) first"
            raise ConfigError("FXQ804", "there is no deployable network to export", fix=fix)
        return self._deployed.export(
            output_dir, f"{self._name}_int", opset=opset_version, prove=check_model
        )

    def _simulation(self, norms: str) -> QuantizationSimModel:
        live = norms == "live"
        config = self._config.model_copy(update={"fold_batch_norms": "live" if live else True})
        sim = QuantizationSimModel(
            copy.deepcopy(self._prepared), self._inputs, _SCHEME, config=config,
            target=self._target, in_place=True,
        )  # fmt: skip
        sim.model.eval()
        return sim
