"""A guard that stops training at the first number that is none, where it comes from.

A NaN spreads: once the loss is one, all weights are after the next step, and nothing tells where it
began. A simulation hides infinities on top, as rounding clips them to the end of a grid. So the
guard looks at what every layer puts out before it is rounded, and at every gradient.

Infinity is how attention masks are written. A layer that is given one, as a number or in a tensor,
may put one out; a layer that makes one may not, and NaN is never right.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import TrainingError
from fxquant.graph.pytree import leaves, tensors
from fxquant.nn import QuantizationMixin
from fxquant.quantization import QuantizerBase
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Iterator


class NanGuard:
    """Looks for NaN and infinity in a model; made by `nan_guard`.

    Attributes:
        step: forward passes with gradients since the guard began.
    """

    def __init__(self, model: nn.Module, *, gradients: bool) -> None:
        self.step = 0
        self._model, self._gradients = model, gradients
        self._nodes: dict[str, fx.Node] = {}
        if isinstance(model, fx.GraphModule):
            for node in model.graph.nodes:
                if node.op == "call_module":
                    self._nodes.setdefault(str(node.target), node)
        self._unknown = {id(p) for p in self._ranges(model) if bool(p.isnan().any())}
        self._layer, self._given_infinity, self._active = "", False, True

    def attach(self, hooks: ExitStack) -> None:
        """Put hooks into the model, which leave with the stack."""
        for path, module in self._model.named_modules():
            if isinstance(module, QuantizerBase):
                handle = module.register_forward_pre_hook(self._before_rounding)
                hooks.callback(handle.remove)
            elif path in self._nodes or (path and not self._nodes and _is_leaf(module)):
                self._watch(path, module, hooks)
        hooks.callback(self._model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        hooks.callback(self._stop)
        if self._gradients:
            for path, parameter in self._model.named_parameters():
                if parameter.requires_grad:
                    handle = parameter.register_hook(self._of_parameter(path))
                    hooks.callback(handle.remove)

    def _watch(self, path: str, module: nn.Module, hooks: ExitStack) -> None:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._layer = path
            self._given_infinity = any(_is_infinite(v) for _, v in leaves((args, kwargs)))
            self._check_ranges(path, module)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            for x in tensors(output):
                self._check_value(path, x)
                if self._gradients and x.requires_grad:
                    x.register_hook(self._of_output(path))

        hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        hooks.callback(module.register_forward_hook(after).remove)

    def _stop(self) -> None:
        self._active = False  # for hooks of tensors that are alive still

    # what hooks call -----------------------------------------------------------------------------

    def _begin(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        self.step += torch.is_grad_enabled()
        for x in tensors((args, kwargs)):
            if _kind(x) == "NaN":
                what = "NaN in the inputs of the model"
                raise self._error(what, None, "look at the data")

    def _before_rounding(self, quantizer: nn.Module, args: Any) -> None:
        for x in tensors(args):
            self._check_value(self._layer, x)

    def _check_value(self, path: str, x: Tensor) -> None:
        kind = _kind(x)
        if kind is None or (kind == "infinity" and self._given_infinity):
            return
        what, fix = f"{kind} in what the layer puts out", "use a lower learning rate, or look at it"
        module = self._model.get_submodule(path)
        for name, parameter in module.named_parameters(recurse=False):
            held = _kind(parameter)
            if held is not None:
                what = f"{what}: its {name} holds {held}"
                fix = "the optimizer made it: use a lower learning rate, or clip gradients"
        raise self._error(what, path, fix)

    def _check_ranges(self, path: str, module: nn.Module) -> None:
        if not isinstance(module, QuantizationMixin):
            return
        for parameter in self._ranges(module):
            kind = None if id(parameter) in self._unknown else _kind(parameter)
            if kind is not None:
                what = f"{kind} in the range of a quantizer"
                raise self._error(what, path, "use a lower range_lr")

    def _of_output(self, path: str) -> Any:
        def hook(gradient: Tensor) -> None:
            kind = _kind(gradient) if self._active else None
            if kind is None:
                return
            node = self._nodes.get(path)
            users = [] if node is None else list(node.users)
            origin = ", ".join(map(_name, users)) or "what follows"
            # one consumer alone is where it comes from, and the line to look at
            only = len(users) == 1 and users[0].op == "call_module"
            what = f"{kind} in the gradient that comes from {origin} to {path}"
            place = str(users[0].target) if only else path
            raise self._error(what, place, "look at what its backward divides by")

        return hook

    def _of_parameter(self, path: str) -> Any:
        def hook(gradient: Tensor) -> None:
            kind = _kind(gradient)
            if kind is not None:
                layer = path.partition(".param_quantizers.")[0].rpartition(".")[0]
                layer = layer if layer in self._nodes or not self._nodes else path
                what = f"{kind} in the gradient of {path}"
                raise self._error(what, layer, "use a lower learning rate, or clip gradients")

        return hook

    # ---------------------------------------------------------------------------------------------

    @staticmethod
    def _ranges(module: nn.Module) -> Iterator[nn.Parameter]:
        for quantizer in module.modules():
            if isinstance(quantizer, QuantizerBase):
                yield from quantizer.parameters(recurse=False)

    def _error(self, what: str, path: str | None, fix: str) -> TrainingError:
        at = None if path is None else self._nodes.get(path, path)
        return TrainingError("FXQ831", f"{what}, in step {self.step}", at=at, fix=fix)


@contextmanager
def nan_guard(model: nn.Module, *, gradients: bool = True) -> Iterator[NanGuard]:
    """Stop at the first NaN or infinity in activations and gradients, where it comes from.

    It looks at every activation and gradient, so it is meant for finding a fault, not for every
    run. Everything it put into the model is gone after the block.

    Args:
        model: a simulation's model; other models are watched by their leaf modules.
        gradients: look at gradients, too. Without them it goes with a `GradScaler`, which lets
            gradients overflow on purpose.

    Raises:
        TrainingError: FXQ831, with the layer, the user's line and the number of the step.

    Example:
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.ones(2, 3)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2)), x)
        >>> sim.compute_encodings([x])
        >>> with nan_guard(sim.model) as guard:
        ...     sim.model(x).sum().backward()
        >>> guard.step
        1
    """
    guard = NanGuard(model, gradients=gradients)
    with ExitStack() as hooks:
        guard.attach(hooks)
        yield guard


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _name(user: fx.Node) -> str:
    if user.op == "output":
        return "the loss"
    return str(user.target) if user.op == "call_module" else user.name


def _is_infinite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and bool(value.isinf().any())
    return isinstance(value, float) and math.isinf(value)


def _kind(x: Tensor) -> str | None:
    """ "NaN", "infinity" or None, of a tensor; one pass where all is well."""
    x = plain(x.detach())
    if not x.is_floating_point() or bool(x.isfinite().all()):
        return None
    return "NaN" if bool(x.isnan().any()) else "infinity"
