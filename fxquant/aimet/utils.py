"""Helpers that AIMET's documents use: `aimet_torch.utils`."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxquant.nn import QuantizationMixin
from fxquant.ptq.batch_norms.bn_fold import example_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "create_rand_tensors_given_shapes",
    "get_device",
    "in_eval_mode",
    "in_train_mode",
    "remove_activation_quantizers",
    "remove_all_quantizers",
    "remove_input_quantizers",
    "remove_output_quantizers",
    "remove_param_quantizers",
    "replace_modules",
    "replace_modules_of_type1_with_type2",
]


def get_device(model: nn.Module) -> torch.device:
    """The device of a model's first parameter; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def create_rand_tensors_given_shapes(input_shape: Any, device: torch.device) -> list[torch.Tensor]:
    """Random tensors of a shape, or of several."""
    return [x.to(device) for x in example_inputs(nn.Module(), input_shape)]


def replace_modules(
    model: nn.Module,
    condition: Callable[[nn.Module], bool],
    factory: Callable[[nn.Module], nn.Module],
) -> None:
    """Put `factory(module)` into the place of every module below the model that is wanted."""
    for name, child in model.named_children():
        if condition(child):
            setattr(model, name, factory(child))
        else:
            replace_modules(child, condition, factory)


def replace_modules_of_type1_with_type2(
    model: nn.Module, type1: type[nn.Module], type2: type[nn.Module]
) -> None:
    """Put `type2()` into the place of every module of `type1`."""
    replace_modules(model, lambda m: isinstance(m, type1), lambda _: type2())


@contextmanager
def in_eval_mode(module: nn.Module | Iterable[nn.Module]) -> Iterator[None]:
    """Let modules evaluate; their training flags come back on leaving."""
    with _in_mode(module, training=False):
        yield


@contextmanager
def in_train_mode(module: nn.Module | Iterable[nn.Module]) -> Iterator[None]:
    """Let modules train; their training flags come back on leaving."""
    with _in_mode(module, training=True):
        yield


@contextmanager
def _in_mode(module: nn.Module | Iterable[nn.Module], *, training: bool) -> Iterator[None]:
    roots = [module] if isinstance(module, nn.Module) else list(module)
    before = {m: m.training for root in roots for m in root.modules()}
    for root in roots:
        root.train(training)
    try:
        yield
    finally:
        for one, mode in before.items():
            one.training = mode


def remove_input_quantizers(modules: nn.Module | Iterable[nn.Module]) -> ExitStack:
    """Take input quantizers out; used in a `with` statement they come back."""
    return _removed(modules, QuantizationMixin._remove_input_quantizers)


def remove_output_quantizers(modules: nn.Module | Iterable[nn.Module]) -> ExitStack:
    """Take output quantizers out; used in a `with` statement they come back."""
    return _removed(modules, QuantizationMixin._remove_output_quantizers)


def remove_param_quantizers(modules: nn.Module | Iterable[nn.Module]) -> ExitStack:
    """Take parameter quantizers out; used in a `with` statement they come back."""
    return _removed(modules, QuantizationMixin._remove_param_quantizers)


def remove_activation_quantizers(modules: nn.Module | Iterable[nn.Module]) -> ExitStack:
    """Take input and output quantizers out; used in a `with` statement they come back."""
    return _removed(modules, QuantizationMixin._remove_activation_quantizers)


def remove_all_quantizers(modules: nn.Module | Iterable[nn.Module]) -> ExitStack:
    """Take all quantizers out; used in a `with` statement they come back."""
    return _removed(modules, QuantizationMixin._remove_all_quantizers)


def _removed(modules: Any, remove: Callable[[QuantizationMixin], Any]) -> ExitStack:
    roots = [modules] if isinstance(modules, nn.Module) else list(modules)
    stack = ExitStack()
    for root in roots:
        for module in root.modules():
            if isinstance(module, QuantizationMixin):
                stack.enter_context(remove(module))
    return stack
