"""Training that is interrupted and goes on, to the last bit as if it had not been.

A checkpoint of the simulation also takes the optimizer, the schedule, the generators of random
numbers and the phase of training: which parts are switched off, frozen or in evaluation. All of it
lies in the two files of a checkpoint, which are replaced as these are: whoever is killed while
saving leaves the older or the newer state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fxquant.checkpoint import TRAINING, Training, read_folder, write_folder
from fxquant.distributed.claims import claim
from fxquant.errors import CheckpointError
from fxquant.io.reading import reason
from fxquant.qat.phase import phase_of, set_phase
from fxquant.qat.plain_values import put_together, taken_apart
from fxquant.qat.random_numbers import random_states, set_random_states

if TYPE_CHECKING:
    from pathlib import Path

    from fxquant.sim import QuantizationSimModel

_KEYS = {"step", "extra", "optimizer", "scheduler", "phase", "random"}
_GROUPS = "make the optimizer as in the run that was saved"


@dataclass(frozen=True)
class TrainingState:
    """Where a run that was saved goes on.

    Attributes:
        step: what `save_training` was given.
        extra: what it was given.
    """

    step: int
    extra: Any


def save_training(
    path: str | Path,
    sim: QuantizationSimModel,
    optimizer: torch.optim.Optimizer,
    scheduler: Any = None,
    *,
    step: int = 0,
    extra: Any = None,
) -> None:
    """Write all that training needs to go on, between two steps.

    Args:
        path: a folder that is made, or an older state that is replaced as a whole. With several
            processes every rank has a folder of its own: their random numbers differ.
        sim: the simulation.
        optimizer: an optimizer of `torch.optim` over parameters of `sim.model`.
        scheduler: a learning rate schedule, or what else has `state_dict` and `load_state_dict`.
        step: number of the step, given back by `load_training`.
        extra: dicts, lists, numbers, texts and tensors of your own: the epoch, the state of a
            gradient scaler or an average of the weights.

    Raises:
        CheckpointError: FXQ616 the optimizer is none, or trains what is not in the simulation;
            FXQ617 something cannot be stored; FXQ618 another rank has saved to this path; FXQ601,
            FXQ542 to FXQ544, as `save_checkpoint`.
    """
    names = _names(sim, optimizer)
    values = {
        "step": step,
        "extra": extra,
        "optimizer": _optimizer_state(optimizer, names),
        "scheduler": _state_of(scheduler),
        "phase": phase_of(sim.model),
        "random": random_states(),
    }
    tensors: dict[str, torch.Tensor] = {}
    plain = {key: taken_apart(value, key, tensors, TRAINING) for key, value in values.items()}
    claim(path)
    write_folder(sim, path, Training(plain, tensors))


def load_training(
    path: str | Path,
    sim: QuantizationSimModel,
    optimizer: torch.optim.Optimizer,
    scheduler: Any = None,
) -> TrainingState:
    """Go on where `save_training` was called.

    The optimizer gets the groups of the saved run, whatever groups it was made with: those of
    `qat.parameter_groups` depend on the ranges, which have moved since.

    Args:
        path: the folder.
        sim: simulation of the same model with the same configuration.
        optimizer: an optimizer of the same class over the same parameters.
        scheduler: the schedule, made as in the run that was saved.

    Returns:
        The step and the extra values that were saved.

    Raises:
        CheckpointError: FXQ615 the checkpoint has no training state, FXQ616 optimizer or schedule
            do not fit, FXQ619 the state is damaged; FXQ602 to FXQ607, as `load_checkpoint`. All
            is unchanged then.
    """
    state, training = read_folder(sim, path)
    if training is None:
        what = f"the checkpoint at {path} has no training state"
        raise CheckpointError("FXQ615", what, fix="give a folder that save_training wrote")
    try:
        found = put_together(training.values, training.tensors)
        _require_whole(found)
    except ValueError as error:
        what = f"the training state at {path} is damaged: {reason(error)}"
        raise CheckpointError("FXQ619", what, fix="take another copy") from error
    parameters = _parameters(sim, optimizer, found["optimizer"])
    _check_scheduler(scheduler, found["scheduler"], len(found["optimizer"]["groups"]))
    sim.model.load_state_dict(state)
    set_phase(sim.model, found["phase"])
    _load_optimizer(optimizer, found["optimizer"], parameters)
    if scheduler is not None:
        scheduler.load_state_dict(found["scheduler"]["state"])
    set_random_states(found["random"])
    return TrainingState(found["step"], found["extra"])


def _require_whole(found: Any) -> None:
    if set(found) != _KEYS or type(found["step"]) is not int:
        msg = "parts of it are missing"
        raise ValueError(msg)


# --- optimizers ----------------------------------------------------------------------------------


def _names(sim: QuantizationSimModel, optimizer: Any) -> list[str]:
    """Names of all parameters of an optimizer, in its order."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        what = f"the optimizer is a {type(optimizer).__name__}"
        raise CheckpointError("FXQ616", what, fix="pass an optimizer of torch.optim")
    known = {id(p): name for name, p in sim.model.named_parameters()}
    given = [p for group in optimizer.param_groups for p in group["params"]]
    other = sum(id(p) not in known for p in given)
    if other:
        what = f"{other} of the optimizer's {len(given)} parameters are not of sim.model"
        fix = "make the optimizer after the simulation, over sim.model.parameters()"
        raise CheckpointError("FXQ616", what, fix=fix)
    return [known[id(p)] for p in given]


def _optimizer_state(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Any]:
    state = optimizer.state_dict()
    return {
        "class": type(optimizer).__name__,
        "groups": [
            {**group, "params": [names[i] for i in group["params"]]}
            for group in state["param_groups"]
        ],
        "state": {names[i]: value for i, value in state["state"].items()},
    }


def _parameters(
    sim: QuantizationSimModel, optimizer: Any, saved: dict[str, Any]
) -> dict[str, torch.nn.Parameter]:
    """Parameters by name, if they are those of the saved optimizer."""
    mine = _names(sim, optimizer)
    kind = type(optimizer).__name__
    if saved["class"] != kind:
        what = f"the optimizer that was saved is {saved['class']}, this one {kind}"
        raise CheckpointError("FXQ616", what, fix=_GROUPS)
    theirs = [name for group in saved["groups"] for name in group["params"]]
    if set(mine) != set(theirs):
        name = min(set(mine) ^ set(theirs))
        which = "this one does not" if name in theirs else "the one that was saved did not"
        what = f"one optimizer trains {name}, {which}"
        raise CheckpointError("FXQ616", what, fix=_GROUPS)
    return dict(sim.model.named_parameters())


def _load_optimizer(
    optimizer: torch.optim.Optimizer,
    saved: dict[str, Any],
    parameters: dict[str, torch.nn.Parameter],
) -> None:
    names = [name for group in saved["groups"] for name in group["params"]]
    numbers = {name: i for i, name in enumerate(names)}
    optimizer.param_groups[:] = [
        {**group, "params": [parameters[name] for name in group["params"]]}
        for group in saved["groups"]
    ]
    groups = [
        {**group, "params": [numbers[name] for name in group["params"]]}
        for group in saved["groups"]
    ]  # fmt: skip
    state = {numbers[name]: value for name, value in saved["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


# --- schedules -----------------------------------------------------------------------------------


def _state_of(scheduler: Any) -> dict[str, Any] | None:
    if scheduler is None:
        return None
    return {"class": type(scheduler).__name__, "state": scheduler.state_dict()}


def _check_scheduler(scheduler: Any, saved: dict[str, Any] | None, groups: int) -> None:
    mine = None if scheduler is None else type(scheduler).__name__
    theirs = None if saved is None else saved["class"]
    if mine != theirs:
        what = f"the schedule that was saved is {theirs}, this one {mine}"
        raise CheckpointError("FXQ616", what, fix="make the schedule as in the run that was saved")
    each = getattr(scheduler, "base_lrs", None)
    if isinstance(each, list) and len(each) != groups:
        what = f"the schedule is of {len(each)} parameter groups, {groups} were saved"
        fix = "calibrate as the run that was saved did before making groups and schedule"
        raise CheckpointError("FXQ616", what, fix=fix)
