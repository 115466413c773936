"""What a simulation does with encodings: files, ranges; the base of `QuantizationSimModel`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fxquant.encodings.collect import module_encodings, places
from fxquant.encodings.file import as_text, read, write
from fxquant.encodings.load import Loaded, load
from fxquant.flags import require_flags
from fxquant.graph.meta import path_matches
from fxquant.io.writing import as_path, checked_prefix, write_text
from fxquant.targets.quantizer_choice import quantizer_for

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, fx, nn

    from fxquant.config import QuantConfig
    from fxquant.quantization import QuantizerBase, QuantScheme
    from fxquant.targets import Target


_HOMES = frozenset({"input_quantizers", "output_quantizers", "param_quantizers"})


class EncodingsMethods:
    """Loading and saving encodings; one simulation of the same network takes those of another."""

    model: fx.GraphModule
    config: QuantConfig
    target: Target
    quant_scheme: QuantScheme
    _example: Any

    def load_encodings(
        self,
        encodings: str | Path | Mapping[str, Any],
        strict: bool = True,
        partial: bool = True,
        requires_grad: bool | None = None,
        allow_overwrite: bool | None = True,
    ) -> Loaded:
        """Take the grids of an encodings file: bitwidths, symmetry and ranges; all or nothing.

        All versions are read, keyed by module or by the names of ONNX tensors. Scales come back to
        the last bit if they came from a quantizer; others may move by one. What the graph returns
        in floating point is quantized where the file has a grid for it, unless the configuration
        keeps it in floating point.

        Args:
            encodings: path of the file, or its content.
            strict: refuse entries for which there is no tensor or no quantizer.
            partial: with False, quantizers for which the file has nothing are taken out.
            requires_grad: whether loaded ranges are trained; None leaves that as it is.
            allow_overwrite: whether later calibration may change them; None leaves that as it is.

        Returns:
            What was loaded, what was ignored and what was missing.

        Raises:
            CheckpointError: FXQ630 it cannot be read, FXQ631 unknown version, FXQ632 malformed.
            SelectorError: FXQ633, an entry has no quantizer (strict).
            ShapeMismatchError: FXQ634, a quantizer has other ranges.
            QuantizationError: FXQ635 a quantizer cannot have the grid, FXQ636 two entries for one.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from fxquant import QuantizationSimModel
            >>> x = torch.randn(4, 3)
            >>> sim, other = (QuantizationSimModel(nn.Linear(3, 2).eval(), x) for _ in range(2))
            >>> sim.compute_encodings([x])
            >>> other.load_encodings(sim.get_encodings()).missing
            ()
        """

        require_flags(strict=strict, partial=partial)

        def names() -> Mapping[str, tuple[str, ...]]:
            from fxquant.onnx.encodings_file import tensor_names  # loads what only ONNX needs

            return tensor_names(self.model, self._example)

        return load(
            self.model, read(encodings), names=names, new=self._result_quantizer, strict=strict,
            partial=partial, requires_grad=requires_grad, allow_overwrite=allow_overwrite,
        )  # fmt: skip

    def set_and_freeze_param_encodings(
        self, encoding_path: str | Path | Mapping[str, Any]
    ) -> Loaded:
        """Take the grids of parameters from an encodings file, and freeze them.

        Later calibration sets ranges of activations only, and training leaves these alone. What the
        file says of activations is not looked at; parameters that it does not name keep what they
        have.

        Args:
            encoding_path: path of the file, or its content, such as `Adaround` writes it.

        Returns:
            What was loaded, what was ignored and what was missing.

        Raises:
            CheckpointError: FXQ630 it cannot be read, FXQ631 unknown version, FXQ632 malformed.
            SelectorError: FXQ633, a parameter has no quantizer.
            ShapeMismatchError: FXQ634, a quantizer has other ranges.
            QuantizationError: FXQ635 a quantizer cannot have the grid, FXQ636 two entries for one.
        """
        file = read(encoding_path)
        known = {place.name for place in places(self.model) if place.is_param}
        # from version 2 on parameters stand among the activations
        params = file.params or tuple(e for e in file.activations if e.name in known)
        file = replace(file, activations=(), params=params)
        return load(self.model, file, requires_grad=False, allow_overwrite=False)

    def _result_quantizer(self, place: str, bits: int) -> QuantizerBase | None:
        """A quantizer for a value that the graph returns, unless the configuration forbids it."""
        path = place.rpartition(".output.")[0]
        asked = self.config.layers.items()
        floats = [p for p, r in asked if r.keep_float or r.output.quantized is False]
        floats += self.config.keep_float
        if any(path_matches(pattern, path, below=True) for pattern in floats):
            return None
        setup: dict[str, Any] = {"bitwidth": bits, "shape": ()}
        made = quantizer_for(self.target, "activation", self.quant_scheme, **setup)
        made.where = f"the output of {path}"
        return made.to(next((p.device for p in self.model.parameters()), None))

    def get_encodings(self) -> dict[str, Any]:
        """The grids of all quantizers that have a range: version 0.6.1, keyed by module."""
        return write(module_encodings(self.model, scheme=self.quant_scheme.name))

    def save_encodings_to_json(self, path: str | Path, filename_prefix: str) -> Path:
        """Write `<path>/<filename_prefix>.json`: version 0.6.1, keyed by module.

        Args:
            path: folder; it is made when missing.
            filename_prefix: how the file is called.

        Returns:
            The file.

        Raises:
            ExportError: FXQ541 to FXQ545, a name or the folder cannot be used.
        """
        name = f"{checked_prefix(filename_prefix)}.json"
        return write_text(as_path(path) / name, as_text(self.get_encodings()))

    # --- the ranges ------------------------------------------------------------------------------

    def named_quantizer_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(key in the state dict, parameter) of every range, each once."""
        for name, parameter in self.model.named_parameters():
            if not _HOMES.isdisjoint(name.split(".")):
                yield name, parameter

    def quantizer_parameters(self) -> Iterator[nn.Parameter]:
        """Every range, for an optimizer with a group of its own for them."""
        for _, parameter in self.named_quantizer_parameters():
            yield parameter

    def quantizer_state_dict(self) -> dict[str, Tensor]:
        """The ranges alone: `sim.model.load_state_dict(ranges, strict=False)` puts them back.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from fxquant import QuantizationSimModel
            >>> sim = QuantizationSimModel(nn.Linear(3, 2).eval(), torch.randn(4, 3))
            >>> sorted(sim.quantizer_state_dict())[0]
            'input_1_stub.output_quantizers.0.max'
        """
        state = self.model.state_dict()
        return {
            name: value for name, value in state.items() if not _HOMES.isdisjoint(name.split("."))
        }
