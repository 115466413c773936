"""`QuantizationMixin`: what turns a module class into its quantized counterpart.

Around the user's own `forward` a quantized module does three things: it quantizes the tensors that
come in, lets the module see quantized parameters under the names of its own, and quantizes what
goes out. Parameters are swapped in the instance's `__dict__`, where Python looks before it asks
`nn.Module` for its parameters: no copy, no hook, and the autograd graph goes through.

The quantized classes are generated, as they differ from their float classes in nothing but their
bases; a list by hand forgets one. `QuantizedConv2d` is an `nn.Conv2d`.
"""

from __future__ import annotations

import types
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fxquant.errors import QuantizationError
from fxquant.nn import calibration, custom_kernels
from fxquant.nn.containers import QuantizerDict, QuantizerList, Removed, Walk, remove
from fxquant.nn.functional import arity_of
from fxquant.nn.live_norm import live_norm_of
from fxquant.nn.low_rank import adapts
from fxquant.nn.training_state import require_stored_weights, store_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fxquant.nn.custom_kernels import Kernel
    from fxquant.quantization import QuantizerBase

_M = TypeVar("_M", bound=nn.Module)
PREFIX = "Quantized"
_REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class QuantizationMixin(nn.Module):
    """A module with quantizers for its inputs, parameters and outputs.

    Attributes:
        input_quantizers: one for each tensor argument in the order of the call, lists flattened.
        output_quantizers: one for each tensor of the result, tuples flattened.
        param_quantizers: one for each direct parameter.
        float_class: the class without quantizers.

    Example:
        >>> from fxquant.quantization import affine
        >>> fc = quantized_class(nn.Linear)(4, 2)
        >>> fc.output_quantizers[0] = affine.QuantizeDequantize(shape=(), bitwidth=8)
        >>> with fc.compute_encodings():
        ...     y = fc(torch.ones(1, 4))
    """

    float_class: ClassVar[type[nn.Module]] = nn.Module
    simulated: ClassVar[bool] = True
    default_kernel: ClassVar[Kernel | None] = None
    # where float values of changed parameters are kept (see `fxquant.ptq.walking.originals`)
    FLOAT_VALUES: ClassVar[str] = "_float_values"
    input_quantizers: QuantizerList
    output_quantizers: QuantizerList
    param_quantizers: QuantizerDict

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__quant_init__()

    def __quant_init__(self) -> None:
        """Start with float everywhere; subclasses may make room for more quantizers."""
        tensors = {**self._parameters, **self._buffers}
        self.param_quantizers = QuantizerDict(n for n, t in tensors.items() if t is not None)
        for name, parameter in self._parameters.items():
            if parameter is not None:
                self.param_quantizers[name] = None
        self.input_quantizers = QuantizerList([None] * arity_of(self, self.float_class))  # type: ignore[list-item]
        self.output_quantizers = QuantizerList([None])  # type: ignore[list-item]
        self._quantized: dict[str, _Kept] = {}

    @staticmethod
    def from_module(module: nn.Module) -> QuantizationMixin:
        """The quantized counterpart of a module: it shares parameters, buffers, children and hooks.

        The module itself is not changed; a module that is quantized already is returned as it is.
        """
        if isinstance(module, QuantizationMixin):
            return module
        if is_ignored(module):
            what = f"{type(module).__name__} is ignored: it is never quantized"
            raise QuantizationError("FXQ422", what, fix="take its QuantizationMixin.ignore away")
        quantized = _blank(type(module))
        for name, value in module.__dict__.items():
            # registries are copied, so what is added to one module does not appear in the other
            quantized.__dict__[name] = value.copy() if name in _REGISTRIES else value
        quantized.__quant_init__()
        return quantized

    def get_original_module(self) -> nn.Module:
        """The module without quantizers; it shares parameters, buffers, submodules and hooks.

        A live batch norm is folded in, and an adapter merged; these weights are its own.
        """
        cls = type(self).float_class
        module = cls.__new__(cls)
        for name, value in self.__dict__.items():
            if name not in ("_quantized", self.FLOAT_VALUES):
                module.__dict__[name] = value.copy() if name in _REGISTRIES else value
        for name in ("input_quantizers", "output_quantizers", "param_quantizers"):
            del module._modules[name]
        store_weights(module)
        return module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward between quantizers."""
        inputs: Any = self._modules["input_quantizers"]
        if any(q is not None for q in inputs._modules.values()):
            walk = Walk(inputs)
            args = walk.over(args)
            kwargs = {name: walk.over(value) for name, value in kwargs.items()}
        live = live_norm_of(self)
        if live is not None:
            return self._quantize_outputs(live.forward_of(self, args, kwargs))
        swapped = self._quantized_parameters()
        kernel = self.get_kernel()
        if kernel is not None and not custom_kernels.observing(self):
            return custom_kernels.run(kernel, self, args, kwargs, swapped)
        if swapped:
            result = self._forward_with(swapped, args, kwargs)
        else:
            result = super().forward(*args, **kwargs)
        return self._quantize_outputs(result)

    # kernels -------------------------------------------------------------------------------------

    def set_kernel(self, kernel: Kernel | None) -> None:
        """Compute with a kernel of one's own; None goes back to the simulated arithmetic.

        Args:
            kernel: `kernel(module, *args, params, output_encodings, **kwargs)`. Inputs that lie on
                a grid and quantized parameters come as `QuantizedTensor`, the rest as it is. What
                it returns is dequantized if it is a `QuantizedTensor` and quantized otherwise.
                While ranges are calibrated it is not called.
        """
        self.__dict__["_kernel"] = kernel

    @classmethod
    def set_default_kernel(cls, kernel: Kernel | None) -> None:
        """Set the kernel of all modules of this class that have none of their own."""
        cls.default_kernel = None if kernel is None else staticmethod(kernel)

    def get_kernel(self) -> Kernel | None:
        """The module's own kernel, its class's, or None."""
        return self.__dict__.get("_kernel") or type(self).default_kernel

    @staticmethod
    def implements(
        cls: type[nn.Module],
    ) -> Callable[[type[QuantizationMixin]], type[QuantizationMixin]]:
        """Class decorator: see `implements`."""
        return implements(cls)

    @staticmethod
    def ignore(cls: type[_M]) -> type[_M]:
        """Class decorator: modules of exactly this class are never quantized."""
        _ignored.add(cls)
        return cls

    def fold_param_quantizers(self) -> None:
        """Give the parameters the values of their grids, and keep the ranges as they are.

        Nothing changes in what the module computes; rounding is no longer undone by training.

        Raises:
            TrainingError: FXQ802, there is a live batch norm or an adapter.
        """
        require_stored_weights(self)
        with torch.no_grad():
            for name, value in self._quantized_parameters().items():
                parameter = calibration.weight_of(self, name)
                if parameter is not None:
                    parameter.copy_(value)
                self.param_quantizers[name].allow_overwrite(False)

    def _forward_with(self, swapped: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        own = self.__dict__
        flat = own.get("_flat_weights")
        if flat is not None:  # recurrent modules keep their weights in a list beside the names
            names = own["_flat_weights_names"]
            own["_flat_weights"] = [swapped.get(n, w) for n, w in zip(names, flat, strict=True)]
        own.update(swapped)
        try:
            return super().forward(*args, **kwargs)
        finally:
            for name in swapped:
                own.pop(name, None)
            if flat is not None:
                own["_flat_weights"] = flat

    def _quantize_outputs(self, result: Any) -> Any:
        quantizers: Any = self._modules["output_quantizers"]
        outputs = quantizers._modules
        first = outputs.get("0")
        if isinstance(result, Tensor):
            if first is None or not result.is_floating_point():
                return result
            return first(result)
        if first is None and not any(q is not None for q in outputs.values()):
            return result
        return Walk(quantizers).over(result)

    # parameters ----------------------------------------------------------------------------------

    def _quantized_parameters(
        self, values: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The quantized parameters by name, or what stands in for them; kept where unchanged."""
        found: dict[str, Tensor] = {}
        quantizers: Any = self._modules["param_quantizers"]
        for name, quantizer in quantizers._modules.items():
            if quantizer is None:
                continue
            parameter = calibration.weight_of(self, name) if values is None else values.get(name)
            if parameter is not None and not quantizer._observing and quantizer._enabled:
                found[name] = self._quantized_parameter(name, parameter, quantizer)
            elif parameter is not None and adapts(self, name):
                found[name] = parameter
        return found

    def _quantized_parameter(self, name: str, value: Tensor, quantizer: QuantizerBase) -> Tensor:
        grad = torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            quantizer.follow(value, begin=grad and value.requires_grad)
            return quantizer(value)  # type: ignore[no-any-return]
        trained = grad and (value.requires_grad or _learns(quantizer))
        if trained or value.is_inference() or value.grad is not None:
            # an optimizer may write without advancing the version: nothing kept can be trusted
            self._quantized.pop(name, None)
            quantizer.follow(value, begin=grad and value.requires_grad)
            return quantizer.transform(value)
        kept = self._quantized.get(name)
        if kept is not None and (kept.of is not value or kept.stamp != _stamp(value)):
            kept = None
        if kept is None:
            quantizer.follow(value, begin=False)
        encoding = quantizer.get_encodings()
        if kept is not None and kept.encoding is encoding:
            return kept.result
        with torch.inference_mode(False), torch.no_grad():
            quantized = quantizer.transform(value)
        if encoding is not None:
            self._quantized[name] = _Kept(value, _stamp(value), encoding, quantized)
        return quantized

    def train(self, mode: bool = True) -> QuantizationMixin:
        """Set the training flag; also drops kept quantized parameters."""
        self.drop_kept()
        super().train(mode)
        return self

    def drop_kept(self) -> None:
        """Compute quantized parameters anew from now on, on ranges that follow trained ones."""
        self._quantized.clear()
        calibration.follow_parameters(self)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # the ranges that belong to the parameters as they are now
        calibration.follow_parameters(self)
        super()._save_to_state_dict(*args, **kwargs)

    # calibration ---------------------------------------------------------------------------------

    @contextmanager
    def compute_encodings(self) -> Iterator[None]:
        """Observe what passes through and set the grids on leaving; see `compute_encodings`."""
        with calibration.compute_encodings(self):
            yield

    # taking quantizers out -----------------------------------------------------------------------

    def _remove_input_quantizers(self, indices: Any = None) -> Removed:
        """Take input quantizers out; used in a `with` statement they come back."""
        return self._removed(inputs=indices)

    def _remove_output_quantizers(self, indices: Any = None) -> Removed:
        """Take output quantizers out; used in a `with` statement they come back."""
        return self._removed(outputs=indices)

    def _remove_param_quantizers(self, names: Any = None) -> Removed:
        """Take parameter quantizers out; used in a `with` statement they come back."""
        return self._removed(params=names)

    def _remove_activation_quantizers(self) -> Removed:
        """Take input and output quantizers out; used in a `with` statement they come back."""
        return self._removed(inputs=None, outputs=None)

    def _remove_all_quantizers(self) -> Removed:
        """Take all quantizers out; used in a `with` statement they come back."""
        return self._removed(inputs=None, outputs=None, params=None)

    def _removed(self, **keys: Any) -> Removed:
        homes = {
            "inputs": self.input_quantizers,
            "outputs": self.output_quantizers,
            "params": self.param_quantizers,
        }
        taken: list[tuple[Any, Any, Any]] = []
        for kind, chosen in keys.items():
            remove(homes[kind], chosen, taken)  # type: ignore[arg-type]
        return Removed(taken)

    # copying -------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_quantized": {}}  # type: ignore[no-untyped-call]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # the class is generated, so it is found again by its float class
        return _blank, (type(self).float_class,), self.__getstate__()


def quantized_class(cls: type[nn.Module]) -> type[QuantizationMixin]:
    """The quantized counterpart of a module class; the same object for the same class.

    Example:
        >>> quantized_class(nn.Conv2d).__name__
        'QuantizedConv2d'
    """
    if issubclass(cls, QuantizationMixin):
        return cls
    found = _classes.get(cls)
    if found is None:
        space = {
            "__module__": "fxquant.nn" if _is_public(cls) else cls.__module__,
            "__doc__": f"`{cls.__name__}` with quantizers.",
            "float_class": cls,
        }
        bases = (QuantizationMixin, cls)
        found = types.new_class(f"{PREFIX}{cls.__name__}", bases, {}, lambda ns: ns.update(space))
        _classes[cls] = found
    return found


def implements(
    cls: type[nn.Module],
) -> Callable[[type[QuantizationMixin]], type[QuantizationMixin]]:
    """Class decorator: use the decorated class as the quantized counterpart of `cls`.

    For modules whose inner results need quantizers of their own; everything else is generated.
    """

    def register(quantized: type[QuantizationMixin]) -> type[QuantizationMixin]:
        if not issubclass(quantized, cls):
            raise QuantizationError(
                "FXQ420",
                f"{quantized.__name__} is no subclass of {cls.__name__}",
                fix=f"write class {quantized.__name__}(QuantizationMixin, {cls.__name__})",
            )
        quantized.float_class = cls
        _classes[cls] = quantized
        return quantized

    return register


def _is_public(cls: type[nn.Module]) -> bool:
    return cls.__module__.startswith(("torch.nn.modules.", "fxquant.nn."))


_classes: dict[type[nn.Module], type[QuantizationMixin]] = {}
_ignored: set[type[nn.Module]] = set()


def is_ignored(module: nn.Module) -> bool:
    """Whether modules of this class are never quantized."""
    return type(module) in _ignored


class _Kept(NamedTuple):
    """A quantized parameter and what it was computed from."""

    of: Tensor
    stamp: tuple[int, int]
    encoding: Any
    result: Tensor


def _stamp(value: Tensor) -> tuple[int, int]:
    return value._version, value.data_ptr()


def _blank(cls: type[nn.Module]) -> QuantizationMixin:
    """An instance of the quantized counterpart of a class, before its state is filled in."""
    quantized = quantized_class(cls)
    return quantized.__new__(quantized)


def _learns(quantizer: nn.Module) -> bool:
    return any(p is not None and p.requires_grad for p in quantizer._parameters.values())
