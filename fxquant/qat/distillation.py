"""Distillation: a simulation in training imitates the float model that it was made from.

The float model saw what rounding takes away, so its logits and features say more about a sample
than its label does. Both models have the same module paths, so a feature is named once.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxquant.errors import TrainingError, nearest
from fxquant.graph.absent_names import absence
from fxquant.nn.modes import evaluating
from fxquant.quantization.tensor import plain
from fxquant.tracking.events import OnEvent, emit, require_event_callback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_TINY = 1e-12  # of a mean square, so that a feature that is zero gives a finite loss


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, dim: int = -1
) -> Tensor:
    """How far logits are from those of a teacher: `T**2 * KL(softmax(t / T) || softmax(s / T))`.

    Args:
        student: logits with a gradient, `[..., C]`.
        teacher: logits to imitate, of the same shape; no gradient flows into them.
        temperature: `T`; higher ones look at small logits, too. The factor `T**2` keeps the
            magnitude of the gradients.
        dim: axis of the classes.

    Returns:
        The mean over all positions but the classes.

    Raises:
        TrainingError: FXQ830, shapes differ, or the temperature is not positive.

    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 0.5]])
        >>> float(distillation_loss(logits, logits, temperature=4.0))
        0.0
    """
    _require_positive("temperature", temperature)
    student, teacher = _comparable(student, teacher, "logits")
    found = F.log_softmax(student / temperature, dim)
    wanted = F.log_softmax(teacher / temperature, dim)
    divergence = F.kl_div(found, wanted, reduction="sum", log_target=True)
    return divergence * (temperature**2 * student.shape[dim] / max(1, student.numel()))


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two features, relative to the mean square of the teacher's.

    Source: the hints of FitNets, Romero et al. 2015, arXiv:1412.6550, equation 3; divided by the
    signal, so that layers of different magnitude count the same.

    Raises:
        TrainingError: FXQ830, shapes differ.
    """
    student, teacher = _comparable(student, teacher, "features")
    return (student - teacher).square().mean() / (teacher.square().mean() + _TINY)


class Distiller:
    """Runs a simulation and its float model on the same inputs, and compares them.

    The float model runs in evaluation and without gradients; its modes and weights stay as they
    are. Features are read by hooks that are there during the call only.

    Args:
        student: a simulation's model, `sim.model`, or what wraps it for training.
        teacher: the float model: the user's network, or `sim.get_original_model()`, in which batch
            norms are folded as they are in the simulation.
        features: module paths whose outputs are compared, with a weight each; a list: 1 each.
        temperature: of the logits, see `distillation_loss`.
        squared: compare logits by `feature_loss` in place of `distillation_loss`: it asks for the
            logits themselves, not only for their differences, which keeps few bits stable.
        logits: takes the logits out of a model's output; the default is for a tensor.
        dim: axis of the classes.
        on_event: called with "qat.distillation" after each call: the loss, and what logits and
            features are in it; reading them waits for the device. See `fxquant.tracking`.

    Raises:
        TrainingError: FXQ830, an argument is wrong, or a path names no operator of both models.

    Example:
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(8, 4)
        >>> net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        >>> sim = QuantizationSimModel(net, x, default_param_bw=4)
        >>> sim.compute_encodings([x])
        >>> output, loss = Distiller(sim.model, net, ["1"], temperature=2.0)(x)
        >>> output.shape, loss.item() > 0
        (torch.Size([8, 3]), True)
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        features: Mapping[str, float] | Iterable[str] = (),
        *,
        temperature: float = 1.0,
        squared: bool = False,
        logits: Callable[[Any], Tensor] | None = None,
        dim: int = -1,
        on_event: OnEvent | None = None,
    ) -> None:
        require_event_callback(on_event)
        self._on_event, self._steps = on_event, 0
        _require_positive("temperature", temperature)
        weights = getattr(features, "items", None)
        one = [features] if isinstance(features, str) else features
        self.features: dict[str, float] = dict(weights() if weights else ((f, 1.0) for f in one))
        for path, weight in self.features.items():
            _require_positive(f"weight of {path}", weight)
            for model in (_unwrapped(student), teacher):
                _require_path(model, path)
        self.student, self.teacher = student, teacher
        self.temperature, self.dim, self.squared = temperature, dim, squared
        self._logits = logits or _tensor_of

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """Run both models.

        Returns:
            The student's output, and the loss: that of the logits plus the weighted sum of those
            of the features.

        Raises:
            TrainingError: FXQ830, a path was not called, or shapes differ.
        """
        with torch.no_grad(), evaluating(self.teacher, kept=True):
            wanted, hints = self._run(self.teacher, self.teacher, args, kwargs)
        output, found = self._run(self.student, _unwrapped(self.student), args, kwargs)
        ours, theirs = self._logits(output), self._logits(wanted)
        if self.squared:
            loss = feature_loss(ours, theirs)
        else:
            loss = distillation_loss(ours, theirs, self.temperature, self.dim)
        parts = {"logits": loss}
        for path, weight in self.features.items():
            parts[path] = weight * feature_loss(found[path], hints[path])
            loss = loss + parts[path]
        self._steps += 1
        if self._on_event is not None:
            told = {name: float(part.detach()) for name, part in {"loss": loss, **parts}.items()}
            emit(self._on_event, "qat.distillation", {"step": self._steps, **told})
        return output, loss

    def _run(
        self, model: nn.Module, inner: nn.Module, args: Any, kwargs: Any
    ) -> tuple[Any, dict[str, Tensor]]:
        with _captured(inner, self.features) as found:
            output = model(*args, **kwargs)
        missing = [path for path in self.features if path not in found]
        if missing:
            what = f"{missing[0]!r} put out no tensor when {type(inner).__name__} ran"
            raise TrainingError("FXQ830", what, at=missing[0], fix="name a layer that is called")
        return output, found


@contextmanager
def _captured(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """What modules put out while the block runs, by path; of several calls the first counts."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found.setdefault(path, output)

        return hook

    with ExitStack() as hooks:
        for path in paths:
            handle = model.get_submodule(path).register_forward_hook(keep(path))
            hooks.callback(handle.remove)
        yield found


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of a wrapper for many processes or of a compiled one."""
    for name in ("module", "_orig_mod"):
        inner = model._modules.get(name)
        if isinstance(inner, nn.Module) and len(model._modules) == 1:
            return _unwrapped(inner)
    return model


def _require_path(model: nn.Module, path: str) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(model, fx.GraphModule):  # whose containers are there and are not called
        modules = {str(n.target): model for n in model.graph.nodes if n.op == "call_module"}
    if path and path in modules:
        return
    gone = absence(model, path)
    if gone is not None:
        raise TrainingError("FXQ830", gone.what, at=path, fix=gone.fix)
    what = f"{path!r} is no module of {type(model).__name__}"
    raise TrainingError("FXQ830", what, fix=nearest(path, modules) or "use one of its paths")


def _require_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        what = f"the {name} is {value!r}"
        raise TrainingError("FXQ830", what, fix="pass a positive, finite number")


def _tensor_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    what = f"the model puts out a {type(output).__name__}, in which the logits are not known"
    fix = "pass logits=, such as logits=lambda output: output['logits']"
    raise TrainingError("FXQ830", what, fix=fix)


def _comparable(student: Tensor, teacher: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Both in float32, the teacher's detached."""
    if student.shape != teacher.shape:
        what = f"{name} of shape {tuple(student.shape)} and {tuple(teacher.shape)} are compared"
        raise TrainingError("FXQ830", what, fix="compare outputs of the same layer")
    return plain(student).float(), plain(teacher).detach().float()
