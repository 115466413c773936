"""`prepare_model` as AIMET calls it: dummy inputs may come later.

AIMET traces a model without running it. Here a run is recorded, which takes inputs, so a model that
is prepared without them stays as it is until they come: at its first call, or in the call of
another function that gets a dummy input or shapes.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

from torch import fx, nn
from torch.overrides import _get_current_function_mode_stack

from fxquant import prepare
from fxquant.errors import ConfigError
from fxquant.prepare import call_arguments
from fxquant.ptq.batch_norms.bn_fold import example_inputs
from fxquant.tracing.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Sequence

_PENDING = "_pending_preparation"


def prepare_model(
    model: nn.Module,
    modules_to_exclude: Sequence[nn.Module] | None = None,
    module_classes_to_exclude: Sequence[type[nn.Module]] | None = None,
    concrete_args: dict[str, Any] | None = None,
    *,
    dummy_input: Any = None,
) -> nn.Module:
    """A model in which every tensor operation is a module of its own; see `fxquant.prepare_model`.

    Args:
        model: the float model; it is not changed.
        modules_to_exclude: modules that are kept whole.
        module_classes_to_exclude: classes whose modules are kept whole.
        concrete_args: refused: recording a run needs none.
        dummy_input: inputs to record the model with. Without them the result is recorded at its
            first call, or when a function of `fxquant.aimet` gets inputs or their shapes with it.

    Raises:
        ConfigError: FXQ903, `concrete_args` are given.
        TraceError: the model cannot be recorded.
    """
    if concrete_args:
        what = "concrete_args are for symbolic tracing; a run on the dummy input is recorded here"
        raise ConfigError("FXQ903", what, fix="pass them in dummy_input, as a dict of arguments")
    excluded: tuple[Any, ...] = (*(modules_to_exclude or ()), *(module_classes_to_exclude or ()))
    if dummy_input is not None:
        return prepare.prepare_model(model, dummy_input, modules_to_exclude=excluded)
    if prepare.is_prepared(model):
        return copy.deepcopy(model)
    memo: dict[int, Any] = {}
    pending = copy.deepcopy(model, memo)
    kept = [memo.get(id(e), e) for e in excluded]
    return _as_pending(pending, kept)


def _as_pending(model: nn.Module, excluded: list[Any]) -> nn.Module:
    """The model with a first call that records it."""
    cls = type(model)

    signature = inspect.signature(cls.forward)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(mode, Recorder) for mode in _get_current_function_mode_stack()):
            return cls.forward(self, *args, **kwargs)  # somebody else records it
        given = dict(signature.bind(self, *args, **kwargs).arguments) if kwargs else {}
        record(self, dict(list(given.items())[1:]) if kwargs else args)
        return self.forward(*args, **kwargs)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    model.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    model.__dict__[_PENDING] = (cls, excluded)
    return model


def is_pending(model: object) -> bool:
    """Whether a model waits for its dummy input."""
    return isinstance(model, nn.Module) and _PENDING in model.__dict__


def record(model: nn.Module, dummy_input: Any) -> None:
    """Turn a model that waits for its dummy input into the prepared one, in place.

    Its layers stay the same objects, so that what was collected from it before stays right.
    """
    cls, excluded = model.__dict__.pop(_PENDING)
    waiting = model.__class__
    model.__class__ = cls
    try:
        made = prepare.prepare_model(model, dummy_input, modules_to_exclude=excluded)
    except BaseException:
        model.__class__ = waiting
        model.__dict__[_PENDING] = (cls, excluded)
        raise
    _keep_layers(made, model)
    hooks = {k: v for k, v in model.__dict__.items() if k.endswith("_hooks") and v}
    model.__class__, model.__dict__ = made.__class__, {**made.__dict__, **hooks}


def _keep_layers(made: fx.GraphModule, model: nn.Module) -> None:
    """Put the layers of the model into the places of their copies."""
    mine = dict(model.named_modules(remove_duplicate=False))
    for path, module in list(made.named_modules(remove_duplicate=False)):
        own = mine.get(path)
        if path and own is not None and type(own) is type(module) and not own._modules:
            owner, _, name = path.rpartition(".")
            made.get_submodule(owner)._modules[name] = own
    for path, module in made.named_modules():
        other = mine.get(path)
        if other is None or other is module:
            continue
        for name, parameter in other._parameters.items():
            if name in module._parameters:
                module._parameters[name] = parameter


def recorded(model: nn.Module, dummy_input: Any = None, input_shapes: Any = None) -> nn.Module:
    """The model; if it waited for a dummy input, it is recorded with this one."""
    if is_pending(model):
        if dummy_input is None:
            dummy_input = example_inputs(model, input_shapes)
        call_arguments(dummy_input)
        record(model, dummy_input)
    return model
